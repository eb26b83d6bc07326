"""Workers that cut, encode and pack as the real ones do, but label a clip in no time, and fail as the video's name says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from wild import misbehave

from pipelines import places, work
from pipelines.fleet import Crew, Local, Place
from pipelines.recipes import AnnotateRecipe
from pipelines.tasks import Job
from pipelines.work import Clock
from shared import codecs
from shared.clip import AnnotatedClip, Cameras, Depth, Flow, Motion

HERE = Path(__file__).resolve().parent


class QuickWorker(work.Worker):
    """The real worker with `Labels` in the annotators' place."""

    def _load(self, threads: int) -> work.Annotators:
        return Labels()


class Labels:
    """A flat world in front of a camera at rest: every slot filled, nothing computed.

    Of a video with `early` in its name only the first clip misbehaves.
    """

    def __init__(self) -> None:
        self.licences = {"Apache-2.0"}

    def __call__(self, clip: AnnotatedClip, clock: Clock) -> AnnotatedClip:
        if "early" not in clip.source or clip.frames[0] < 5:
            misbehave(Path(clip.source))
        t, h, w = clip.shape
        clock.lap("labels")
        flow, key_flow = (_flow(n, h, w, stride) for n, stride in ((t - 1, 1), ((t - 1) // 4, 4)))
        made = {
            "flow": flow,
            "key_flow": key_flow,
            "depth": Depth(
                z=np.full((t, h, w), 2, np.float32), valid=np.ones((t, h, w), bool), metric=False, source="quick"
            ),
            "cameras": Cameras(
                world_from_cam=np.tile(np.eye(4), (t, 1, 1)),
                intrinsics=np.tile(np.array([50.0, 50.0, w / 2, h / 2]), (t, 1)),
                metric=False,
                source="quick",
            ),
            "motion": Motion(
                dynamic=np.zeros((t, h, w), bool),
                scene_flow=np.zeros((t - 1, h, w, 3), np.float32),
                scene_flow_valid=np.ones((t - 1, h, w), bool),
                source="quick",
            ),
        }
        empty = {slot: part for slot, part in made.items() if getattr(clip, slot) is None}
        return clip.with_(
            scores={"brightness": float(clip.rgb.mean())} | {f"made_{slot}": 1.0 for slot in empty}, **empty
        )


def _flow(pairs: int, height: int, width: int, stride: int) -> Flow:
    still = np.zeros((pairs, height, width, 2), np.float32)
    return Flow(forward=still, backward=still, stride=stride, source="quick")


def video(path: Path, seed: int, *, frames: int = 12, height: int = 48, width: int = 64) -> Path:
    """A drifting texture: one shot of one and a half seconds."""
    texture = np.random.default_rng(seed).integers(0, 256, (height // 8, 2 * width // 8, 3), dtype=np.uint8)
    world = texture.repeat(8, axis=0).repeat(8, axis=1)
    rgb = np.stack([world[:, 2 * t : 2 * t + width] for t in range(frames)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(codecs.encode_rgb(rgb, 8.0))
    return path


def recipe(**fleet: Any) -> AnnotateRecipe:
    """Clips of five small frames, blocks of few videos, short time-outs."""
    defaults = {"block_videos": 4, "clips_per_shard": 5, "clip_timeout_s": 5.0, "worker_gib": 1.5}
    cut = {"frames": 5, "fps": 8.0, "height": 48, "width": 64}
    return AnnotateRecipe.model_validate({"cut": cut, "fleet": defaults | fleet})


def seats(recipe: AnnotateRecipe, count: int) -> list[Place]:
    """Places of quick workers."""
    place = places.fitting(recipe, [{"CPU": 64.0}])[0]
    quick = {**vars(place.job), "factory": "quick:QuickWorker", "path": (str(HERE),)}
    return [replace(place, job=Job(**quick), cpus=0.25)] * count


def local(recipe: AnnotateRecipe, count: int = 2) -> Any:
    """Starts local processes: what `annotate` takes as `crew`."""

    def start() -> tuple[Crew, list[Place]]:
        return Local(), seats(recipe, count)

    return start
