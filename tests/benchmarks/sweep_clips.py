"""Small shards for `worldreel sweep`: `python tests/benchmarks/sweep_clips.py FROM TO [SHARE [SEED]]`.

FROM is an annotated run. Its clips are halved in size and keep what training reads; their scores stay those of the whole size. With
SHARE, the labels of FROM are true, and that share of clips gets one harmful corruption of `curate.corrupt`, drawn at random.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from annotate.datasets.dataset import Field
from annotate.datasets.fitting import Fit
from curate import measure
from curate.corrupt import CORRUPTIONS, changed
from shared import shards
from shared.clip import AnnotatedClip

A_SHARD = 32
CRF = 40
"""Pictures are small: the decoder, which a sweep trains, reads geometry alone."""
LEFT_OUT = ("flow.backward", "motion.scene_flow.", "motion.scene_flow_valid", "motion.instances", "key_flow")
"""Members that gates read at the whole size, and no training."""


def main(source: str, to: str, share: float, seed: int) -> None:
    rng, items, made = np.random.default_rng(seed), [], Counter()
    dataset = {row["clip_id"]: row["dataset"] for row in shards.read_index(source).to_pylist()}
    for clip in shards.read_clips(source):
        wrong, what = _corrupted(clip, rng) if rng.random() < share else (clip, "")
        made[what or "as it was"] += 1
        scores = {**clip.scores, **measure.scores(wrong)}
        small = replace(_halved(wrong), scores=scores, caption=what or clip.caption)
        members = shards.encode(small, shards.Store(rgb_crf=CRF))
        members = {name: data for name, data in members.items() if not name.startswith(LEFT_OUT)}
        items.append((small.id, members, shards.index_row(small, dataset=dataset[clip.id])))
    for number, start in enumerate(range(0, len(items), A_SHARD)):
        shards.write_shard(str(Path(to) / "shards"), f"x-{number:06d}", items[start : start + A_SHARD])
    print(dict(made))


def _corrupted(clip: AnnotatedClip, rng: np.random.Generator) -> tuple[AnnotatedClip, str]:
    """With the first corruption of a random order that changes something, and its name."""
    for place in rng.permutation(len(CORRUPTIONS)):
        corruption = CORRUPTIONS[place]
        wrong = corruption.apply(clip, corruption.harmful, rng)
        if changed(clip, wrong):
            return wrong, corruption.name
    return clip, ""


def _halved(clip: AnnotatedClip) -> AnnotatedClip:
    _, height, width = clip.shape
    fit = Fit(height=height, width=width, to_height=height // 2, to_width=width // 2)
    assert clip.depth is not None
    assert clip.cameras is not None
    assert clip.flow is not None
    assert clip.motion is not None

    def fields(values: np.ndarray, valid: np.ndarray, stride: int, *, pixels: bool) -> tuple[np.ndarray, np.ndarray]:
        z = clip.depth.z[::stride]  # pyright: ignore[reportOptionalMemberAccess]
        every = [fit.field(Field(values=v, valid=ok), at, pixels=pixels) for v, ok, at in zip(values, valid, z)]
        return np.stack([f.values for f in every]), np.stack([f.valid for f in every])

    motion, known = clip.motion, np.ones(clip.flow.forward.shape[:3], bool)
    forward = fields(clip.flow.forward, known, 1, pixels=True)[0]
    z = np.stack([fit.depth(np.where(ok, frame, 0)) for frame, ok in zip(clip.depth.z, clip.depth.valid)])
    scene_flow, scene_flow_valid = fields(motion.scene_flow, motion.scene_flow_valid, 1, pixels=False)
    key, key_valid = None, None
    if motion.key_scene_flow is not None and motion.key_scene_flow_valid is not None:
        key, key_valid = fields(motion.key_scene_flow, motion.key_scene_flow_valid, 4, pixels=False)
    dynamic = np.stack([fit.nearest(frame.astype(np.uint8)) for frame in motion.dynamic]) > 0
    return replace(
        clip,
        rgb=np.stack([fit.rgb(frame) for frame in clip.rgb]),
        depth=replace(clip.depth, z=z, valid=z > 0),
        cameras=replace(clip.cameras, intrinsics=np.stack([fit.intrinsics(k) for k in clip.cameras.intrinsics])),
        flow=replace(clip.flow, forward=forward, backward=np.zeros_like(forward), uncertainty=None),
        key_flow=None,
        motion=replace(
            motion,
            dynamic=dynamic,
            scene_flow=scene_flow,
            scene_flow_valid=scene_flow_valid,
            key_scene_flow=key,
            key_scene_flow_valid=key_valid,
            sky=None,
            instances=None,
        ),
    )


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        *(float(word) for word in sys.argv[3:4] or ["0"]),
        *(int(w) for w in sys.argv[4:5] or ["0"]),
    )
