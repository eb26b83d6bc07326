"""A clip in closed form, and the shard `golden-000000` that every later version must still read. Run: python tests/golden/make.py

Never run it to make a failing test pass: a new format gets a new golden shard beside this one.
"""

from pathlib import Path

import numpy as np

from shared import shards
from shared.clip import AnnotatedClip, Cameras, Depth, Flow, Motion

FOLDER = Path(__file__).parent
NAME = "golden-000000"


def clip(clip_id: str = "a1b2c3d4", *, frames: int = 9, height: int = 24, width: int = 32) -> AnnotatedClip:
    """Formulas of frame, row and column in every slot; a world that could not exist, but whose every number is known."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    keys = (frames - 1) // 4
    rgb = np.stack([40 + 4 * x + 2 * t, 30 + 5 * y + t, 200 - 2 * x - 2 * y], axis=-1).clip(0, 255).astype(np.uint8)
    sky = y < 3
    z = np.where(sky, 0, 2 + 0.1 * y + 0.05 * x + 0.02 * t).astype(np.float32)
    world_from_cam = np.tile(np.eye(4), (frames, 1, 1))
    angle = 0.01 * np.arange(frames)
    world_from_cam[:, 0, 0] = world_from_cam[:, 2, 2] = np.cos(angle)
    world_from_cam[:, 0, 2], world_from_cam[:, 2, 0] = np.sin(angle), -np.sin(angle)
    world_from_cam[:, 0, 3] = 0.1 * np.arange(frames)
    dynamic = (x - 10 - t) ** 2 + (y - 12) ** 2 < 20
    moved = np.stack([0.1 * dynamic, -0.05 * dynamic * (y % 3), 0.02 * dynamic], axis=-1).astype(np.float32)
    return AnnotatedClip(
        id=clip_id,
        rgb=rgb,
        fps=8.0,
        source="closed form: café",
        frames=np.arange(10, 10 + 3 * frames, 3),
        caption="A disc passes by.",
        licence="CC0-1.0",
        depth=Depth(z=z, valid=~sky, metric=True, source="formula"),
        cameras=Cameras(
            world_from_cam=world_from_cam,
            intrinsics=np.tile([30.0, 30.5, width / 2, height / 2], (frames, 1)),
            metric=True,
            source="formula",
            degenerate="focal_weak",
            focal_source="prior",
            focal_rel_ci=0.2,
        ),
        flow=_flow(x, y, frames - 1, stride=1),
        key_flow=_flow(x, y, keys, stride=4),
        motion=Motion(
            dynamic=dynamic,
            scene_flow=moved[:-1],
            scene_flow_valid=~sky[:-1],
            key_scene_flow=4 * moved[: 4 * keys : 4],
            key_scene_flow_valid=~sky[: 4 * keys : 4],
            sky=sky,
            instances=(7 * dynamic).astype(np.int32),
            source="formula",
        ),
        scores={"motion": 1.5, "flow_cycle": 0.25},
    )


def _flow(x: np.ndarray, y: np.ndarray, pairs: int, stride: int) -> Flow:
    forward = np.stack([stride * (1 + x / 64), stride * (y - 12) / 32], axis=-1)[:pairs].astype(np.float32)
    uncertainty = (0.1 + 0.01 * x)[:pairs].astype(np.float32)
    return Flow(forward=forward, backward=-forward, stride=stride, uncertainty=uncertainty, source="formula")


def items() -> list[tuple[str, dict[str, bytes], dict]]:
    """Two clips, compact and plain, and one that was screened out."""
    compact, plain = clip(frames=5, height=20, width=24), clip("e5f6a7b8", frames=5, height=7, width=5)
    plain = plain.with_(key_flow=None)
    screened = {"clip_id": "c9d0", "status": "screened", "reason": "too dark", "score.luminance": 3.0}
    return [
        (compact.id, shards.encode(compact, shards.Store(pointmaps="dense")), shards.index_row(compact, work_key="k")),
        ("c9d0", {}, screened),
        (plain.id, shards.encode(plain, shards.Store(codec="plain")), shards.index_row(plain)),
    ]


if __name__ == "__main__":
    shards.write_shard(FOLDER, NAME, items())
