"""Another method's cameras where ours are in doubt: pycolmap's global mapper, judged by how much of the picture it explains.

It runs in a process of its own and is an optional extra. It varies between runs, registers every frame of a still camera, and needs
all frames registered to count; so it is adopted only if our own dense triangulation finds more static depth with its cameras.
"""

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8

from annotate.cameras.estimate import world_from_cam
from annotate.depth import triangulate
from annotate.flow.pairs import PairFlows
from shared.clip import Cameras

MISSING = "second_opinion_missing"
"""The flag where a second opinion was due and pycolmap is not installed."""
TRIGGERS = frozenset({"poor_fit", "dynamic_dominated", "focal_weak", "low_parallax"})
"""Flags it can help with; never a still or a turning camera, nor flow that cannot be trusted."""
HOPELESS = frozenset({"static_camera", "rotation_only", "flow_unreliable"})
MIN_GAIN = 0.01
"""More valid depth, as a share of all pixels, than ours before its cameras are taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mapped:
    """What the mapper found, in the frames' own pixels."""

    world_from_cam: Float64[np.ndarray, "T 4 4"]
    registered: Bool[np.ndarray, " T"]
    focal_px: float


def is_due(policy: str, flags: str | None) -> bool:
    """Whether to ask, by the knob and the flags of the first opinion."""
    found = set((flags or "").split(","))
    if policy == "never" or found & HOPELESS:
        return False
    return policy == "always" or bool(found & TRIGGERS)


def is_installed() -> bool:
    """Looked up, not imported: its import is what may crash."""
    return importlib.util.find_spec("pycolmap") is not None


def ask(pairs: PairFlows, ours: Cameras, timeout_s: float) -> tuple[Cameras, dict[str, float]]:
    """The better of two opinions on the clip at working size, and the valid shares that decided.

    The mapper runs twice, the second time without what the first one's cameras show to move.
    """
    shape = (len(pairs.rgb), *pairs.size)
    our_share = float(triangulate.dense(pairs, ours, shape).valid.mean())
    scores = {"second_opinion_ours": our_share}
    first = _judged(pairs, shape, None, timeout_s)
    if first is None:
        return ours, scores
    theirs, found = first
    again = _judged(pairs, shape, found.dynamic, timeout_s)
    if again is not None and again[1].valid.mean() > found.valid.mean():
        theirs, found = again
    scores["second_opinion_theirs"] = float(found.valid.mean())
    better = found.valid.mean() >= our_share + MIN_GAIN and _may_win(ours)
    return (theirs, scores | {"second_opinion_adopted": 1.0}) if better else (ours, scores)


def _may_win(ours: Cameras) -> bool:
    """Before a plane a wrong focal length absorbs the mover and explains more."""
    flags = set((ours.degenerate or "").split(","))
    return "focal_weak" not in flags or "poor_fit" in flags


def _judged(
    pairs: PairFlows, shape: tuple[int, int, int], moving: Bool[np.ndarray, "T H W"] | None, timeout_s: float
) -> tuple[Cameras, "triangulate.Dense"] | None:
    try:
        mapped = map_globally(pairs.rgb, moving, timeout_s=timeout_s)
    except ValueError:  # no opinion is no reason to lose ours
        return None
    if not mapped.registered.all() or not 0.5 <= mapped.focal_px / max(pairs.size) <= 2:
        return None
    cameras = to_cameras(mapped, shape)
    return cameras, triangulate.dense(pairs, cameras, shape)


def map_globally(
    rgb: UInt8[np.ndarray, "T H W 3"],
    moving: Bool[np.ndarray, "T H W"] | None = None,
    *,
    seed: int = 0,
    timeout_s: float = 600,
) -> Mapped:
    """Cameras of all frames, what moves left out. Raises ValueError if pycolmap is missing, fails or takes too long."""
    if not is_installed():
        raise ValueError("a second opinion asks for pycolmap: pip install pycolmap")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_frames(folder, rgb, moving)
        command = [sys.executable, "-m", "annotate.cameras.global_mapper", name, str(seed)]
        root = Path(__file__).parents[2]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"pycolmap's global mapper took more than {timeout_s:g} s") from None
        if done.returncode or not (folder / "out.npz").exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"pycolmap's global mapper failed with code {done.returncode}: {last}")
        with np.load(folder / "out.npz", allow_pickle=False) as out:
            return Mapped(
                world_from_cam=world_from_cam(out["cam_from_world"]),
                registered=out["registered"],
                focal_px=float(out["focal"]),
            )


def _write_frames(folder: Path, rgb: UInt8[np.ndarray, "T H W 3"], moving: Bool[np.ndarray, "T H W"] | None) -> None:
    (folder / "images").mkdir()
    for t, frame in enumerate(rgb):
        cv2.imwrite(str(folder / "images" / f"{t:06d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if moving is None:
        return
    (folder / "masks").mkdir()
    grow = np.ones((7, 7), np.uint8)  # 3 px: features at a mover's edge move with it
    for t, frame in enumerate(moving):
        still = cv2.dilate(frame.astype(np.uint8), grow) == 0
        cv2.imwrite(str(folder / "masks" / f"{t:06d}.png.png"), still.astype(np.uint8) * 255)


def to_cameras(mapped: Mapped, shape: tuple[int, int, int]) -> Cameras:
    """As cameras of frames of this size, which the mapper saw."""
    num_frames, height, width = shape
    return Cameras(
        world_from_cam=mapped.world_from_cam,
        intrinsics=np.tile([mapped.focal_px, mapped.focal_px, width / 2, height / 2], (num_frames, 1)).astype(float),
        metric=False,
        source="colmap_global",
        focal_source="self_calibrated",
    )
