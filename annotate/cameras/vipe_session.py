"""A loaded ViPE: clips go in as PNG, artifacts come out, failures step down a ladder of lighter configurations."""

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from annotate.annotator import FlowModel
from annotate.cameras import degenerate, vipe_artifacts
from annotate.cameras.vipe import Vipe
from annotate.cameras.vipe_artifacts import Artifacts
from annotate.cameras.vipe_process import Driver, VipeError
from shared.clip import AnnotatedClip, Cameras, Depth, Motion

MAX_FRAMES = 1000
HOST_BYTES_PER_PIXEL = 36
"""ViPE holds a clip about three times as float32 RGB."""

FEWEST_FRAMES = 8
"""With fewer, ViPE's tracking never starts (it wants as many keyframes) and its backend alone answers."""

POSES_ONLY = ("pipeline.post.depth_align_model=null",)
Configuration = tuple[str, tuple[str, ...]]


class Session:
    """Implements `Annotate`. Holds one driver; another configuration means another process."""

    def __init__(self, knobs: Vipe) -> None:
        self.knobs = knobs
        self._configuration: Configuration = (knobs.preset, knobs.overrides)
        self._driver: Driver | None = None
        self._start(self._configuration)

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
        if clip.cameras is not None:
            return clip
        _fits(clip)
        with tempfile.TemporaryDirectory(prefix="vipe-") as scratch:
            folder = Path(scratch)
            _write_frames(clip, folder / "frames")
            configuration = self._annotate(clip, folder)
            artifacts = vipe_artifacts.read(folder / "out", clip.id, clip.shape)
        return filled(clip, artifacts, f"vipe-{configuration[0]}")

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
        self._driver = None

    def _annotate(self, clip: AnnotatedClip, folder: Path) -> Configuration:
        """Run the clip; out of memory or a failed depth alignment goes one rung down, anything else is the clip's failure."""
        ladder = _ladder(self.knobs)
        for rung, configuration in enumerate(ladder):
            try:
                self._run(clip, folder, configuration)
                return configuration
            except VipeError as error:
                self.close()  # a CUDA failure poisons its process
                lighter = {"oom": rung + 1, "RuntimeError": len(ladder) - 1}.get(error.kind)
                if error.kind == "weights":  # as for every other clip
                    raise VipeError(
                        error.kind, f"{error}: put them under cameras.weights_dir (torch/ and hf/)"
                    ) from None
                if lighter is None or lighter >= len(ladder) or rung == len(ladder) - 1:
                    raise VipeError(error.kind, f"{clip.id}: {error}") from None
        raise AssertionError("the ladder has a last rung")

    def _run(self, clip: AnnotatedClip, folder: Path, configuration: Configuration) -> None:
        if (
            self._driver is None
            or configuration != self._configuration
            or self._driver.served >= self.knobs.clips_per_process
        ):
            self._start(configuration)
        assert self._driver is not None
        timeout_s = self.knobs.timeout_s or 120 + 2.0 * len(clip.rgb)
        self._driver.run(clip.id, folder / "frames", folder / "out", clip.fps, timeout_s)

    def _start(self, configuration: Configuration) -> None:
        self.close()
        command = self.knobs.driver_command(*configuration)
        try:
            self._driver = Driver(command, self.knobs.environment())
        except FileNotFoundError:
            raise ValueError(f"cameras.python: no such program {command[0]!r}, expected ViPE's Python") from None
        self._configuration = configuration


def filled(clip: AnnotatedClip, artifacts: Artifacts, source: str) -> AnnotatedClip:
    """The clip with what ViPE knows. Its masks are *movable* things, not moving ones: `motion` decides which of them move."""
    cameras = Cameras(
        world_from_cam=artifacts.world_from_cam,
        intrinsics=artifacts.intrinsics,
        metric=False,  # near-metric is not metric
        source=source,
        degenerate=",".join(doubts(artifacts)) or None,
        focal_source="network",
    )
    parts: dict[str, Any] = {"cameras": cameras}
    if artifacts.z is not None and clip.depth is None:
        parts["depth"] = Depth(z=artifacts.z, valid=artifacts.z > 0, metric=False, source=source)
    if artifacts.instances is not None and clip.motion is None:
        parts["motion"] = _movable(clip, artifacts, source)
    return clip.with_(**parts)


def doubts(artifacts: Artifacts) -> list[str]:
    """Flags that ViPE, which gives no sign of quality, does not raise itself: by the tests of `flow_ba` where its depth allows."""
    num_frames = len(artifacts.world_from_cam)
    ratio = artifacts.intrinsics[:, 0] / (2 * artifacts.intrinsics[:, 2:].max(1))  # of the long side
    low = num_frames < FEWEST_FRAMES or (
        artifacts.z is not None and parallax_px(artifacts) < degenerate.LEAST_SPREAD_PX
    )
    return ["low_parallax"] * low + ["focal_weak"] * bool(((ratio < 0.5) | (ratio > 2)).any())


def parallax_px(artifacts: Artifacts) -> float:
    """How unevenly translation moves the middle frame towards the first or last: 90th minus 10th percentile, at 320 pixels.

    0 where no depth is known.
    """
    assert artifacts.z is not None
    middle, height, width = len(artifacts.z) // 2, *artifacts.z.shape[1:]
    step = max(1, max(height, width) // 40)
    z = artifacts.z[middle, ::step, ::step].astype(np.float64)
    v, u = np.mgrid[0:height:step, 0:width:step] + 0.5
    focal, center = artifacts.intrinsics[middle, :2], artifacts.intrinsics[middle, 2:]
    known = z > 0
    if not known.any():
        return 0.0
    ray = np.append((np.stack((u, v), -1)[known] - center) / focal, np.ones((known.sum(), 1)), 1)
    spreads = []
    for other in (0, -1):
        other_from_middle = np.linalg.inv(artifacts.world_from_cam[other]) @ artifacts.world_from_cam[middle]
        turned = ray @ other_from_middle[:3, :3].T
        moved = turned + other_from_middle[:3, 3] / z[known][:, None]
        added = focal * (moved[:, :2] / moved[:, 2:].clip(0.05) - turned[:, :2] / turned[:, 2:].clip(0.05))
        spreads.append(np.subtract(*np.percentile(np.linalg.norm(added, axis=1), (90, 10))))
    return float(max(spreads)) * 320 / max(height, width)


def _movable(clip: AnnotatedClip, artifacts: Artifacts, source: str) -> Motion:
    frames, height, width = clip.shape
    return Motion(
        dynamic=np.zeros((frames, height, width), bool),
        scene_flow=np.zeros((frames - 1, height, width, 3), np.float32),
        scene_flow_valid=np.zeros((frames - 1, height, width), bool),
        instances=artifacts.instances,
        sky=artifacts.sky,
        source=source,
    )


def _ladder(knobs: Vipe) -> list[Configuration]:
    full: Configuration = (knobs.preset, knobs.overrides)
    light: Configuration = ("no_vda", knobs.overrides)
    poses: Configuration = ("no_vda", (*knobs.overrides, *POSES_ONLY))
    return list(dict.fromkeys((full, light, poses)))


def _fits(clip: AnnotatedClip) -> None:
    frames, height, width = clip.shape
    if not 3 <= frames <= MAX_FRAMES:
        raise ValueError(f"{clip.id}: {frames} frames, ViPE takes 3 to {MAX_FRAMES}")
    if height % 2 or width % 2:
        raise ValueError(f"{clip.id}: {width}x{height}, ViPE takes even sides only")
    needed, free = clip.rgb.size // 3 * HOST_BYTES_PER_PIXEL, _free_bytes()
    if needed > free:
        raise ValueError(f"{clip.id}: ViPE would need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free")


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()  # ViPE runs on Linux only
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _write_frames(clip: AnnotatedClip, folder: Path) -> None:
    folder.mkdir()
    for number, frame in enumerate(clip.rgb):
        if not cv2.imwrite(str(folder / f"{number:06d}.png"), frame[..., ::-1]):
            raise ValueError(f"{clip.id}: frame {number} could not be written to {folder}")
