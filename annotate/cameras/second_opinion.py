"""Another method's cameras where ours are in doubt: pycolmap's global mapper, judged by how much of the picture it explains.

It runs in a process of its own and is an optional extra. It varies between runs, registers every frame of a still camera, and needs
all frames registered to count; so it is adopted only if its cameras, held against our flow as they are, explain clearly more of it
than ours. What is adopted bears the flags that our own tests give it.
"""

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8

from annotate.cameras import bundle, degenerate, epipolar, estimate, focal
from annotate.cameras.bundle import Solve, State
from annotate.cameras.estimate import Solved, Views
from annotate.depth import triangulate
from annotate.depth.triangulate import Dense
from annotate.flow.pairs import PairFlows
from shared.clip import Cameras

MISSING = "second_opinion_missing"
"""The flag where a second opinion was due and pycolmap is not installed."""
TRIGGERS = frozenset({"poor_fit", "dynamic_dominated", "focal_weak", "low_parallax"})
"""Flags it can help with; never a still or a turning camera, nor flow that cannot be trusted."""
HOPELESS = frozenset({"static_camera", "rotation_only", "flow_unreliable"})
MIN_RATIO = 1.2
"""Of the flow's weight that the mapper's cameras explain over what ours do, before they are taken.

Calibrated by `tests/benchmarks/bench_cameras.py --second` (docs/cameras.md). The share of valid depth, the obvious measure, prefers
a focal length that is a fifth too long.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mapped:
    """What the mapper found, in the frames' own pixels."""

    world_from_cam: Float64[np.ndarray, "T 4 4"]
    registered: Bool[np.ndarray, " T"]
    focal_px: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """How cameras stand against the flow of a clip, whoever found them."""

    cameras: Cameras
    """With the flags that our own tests give them."""
    area: float
    """Share of the flow's weight that they explain."""
    sigma_px: float
    rel_ci: float


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
    """The better of two opinions on the clip at working size, and the numbers that decided."""
    views = estimate.look(pairs)
    first = judged(views, ours)
    scores = {"second_opinion_ours": first.area}
    others = opinions(views, first, ours.degenerate, timeout_s)
    if not others:
        return ours, scores
    best = max(others, key=lambda one: one.area)
    scores["second_opinion_theirs"] = best.area
    if not is_better(best, first):
        return ours, scores
    return best.cameras, scores | {"second_opinion_adopted": 1.0}


def opinions(views: Views, ours: Verdict, flags: str | None, timeout_s: float) -> list[Verdict]:
    """The mapper's cameras, and those of a second run without what moves; only where all frames are placed.

    What moves is told by the first run's cameras, or by ours where it has none, unless ours fit badly: such a mask misleads.
    """
    focal_px = float(ours.cameras.intrinsics[0, 0]) if ours.cameras.focal_source == "given" else None
    first = _mapped(views, None, focal_px, timeout_s)
    guide = first or (None if "poor_fit" in (flags or "").split(",") else ours)
    again = None if guide is None else _mapped(views, dense(views, guide.cameras).dynamic, focal_px, timeout_s)
    return [one for one in (first, again) if one is not None]


def dense(views: Views, cameras: Cameras) -> Dense:
    """Depth and what moves by these cameras."""
    return triangulate.dense(views.pairs, cameras, (len(views.pairs.rgb), *views.pairs.size))


def judged(views: Views, cameras: Cameras) -> Verdict:
    """How these cameras stand against the clip's flow, poses and focal length as they are: only depths are solved for."""
    still = torch.zeros(len(views.keys), dtype=torch.bool)
    how = Solve(iterations=25, free=still, damping=1e-5, tolerance=1e-3, smoothing=estimate.LITTLE)
    state, fit = bundle.solve(views.voted, _state(views, cameras), how)
    solved = estimate.explained(views, state, fit)
    problem = epipolar.weighted(views.raw, solved.static)
    state, fit = bundle.solve(problem, state, replace(how, iterations=15))
    solved = estimate.explained(views, state, fit)
    profile = _profile(views, solved)
    evidence = estimate.weigh(views, views.turned(state.focal)[0], state, fit)
    given = cameras.focal_source == "given"
    weak = not given and focal.is_weak(state, views.raw, fit, profile)
    flags, _ = estimate.doubts(views, solved, evidence, given, weak)
    return Verdict(
        cameras=replace(cameras, degenerate=",".join(flags) or None, focal_rel_ci=None if given else profile.rel_ci),
        area=solved.area,
        sigma_px=fit.sigma_px,
        rel_ci=profile.rel_ci,
    )


def _profile(views: Views, solved: Solved) -> focal.Profile:
    """Of the given focal length, no surer than where it goes when it is let go."""
    problem = epipolar.weighted(views.raw, solved.static)
    how = Solve(iterations=8, focal=True, focal_prior=views.focal_prior, smoothing=estimate.LITTLE)
    loose, _ = bundle.solve(problem, solved.state, how)
    drift = abs(loose.focal / solved.state.focal - 1)
    return replace(focal.profile(problem, solved.state, solved.fit), least=drift)


def is_better(theirs: Verdict, ours: Verdict) -> bool:
    """Whether their cameras are usable, and explain clearly more of the flow."""
    usable = not degenerate.is_unusable(theirs.cameras.degenerate)
    return usable and theirs.area >= MIN_RATIO * ours.area


def _state(views: Views, cameras: Cameras) -> State:
    """Keyframe poses in units of the median depth, all nodes at it."""
    rig = triangulate.rig_of(views.pairs, cameras, (len(views.pairs.rgb), *views.pairs.size))
    cam_from_world = torch.linalg.inv(rig.world_from_cam[views.keys])
    return replace(
        State.start(views.raw, len(views.keys), float(cameras.intrinsics[0, 0])),
        rotation=cam_from_world[:, :3, :3],
        translation=cam_from_world[:, :3, 3] / rig.unit,
    )


def _mapped(
    views: Views, moving: Bool[np.ndarray, "T H W"] | None, focal_px: float | None, timeout_s: float
) -> Verdict | None:
    pairs = views.pairs
    try:
        mapped = map_globally(pairs.rgb, moving, focal_px=focal_px, timeout_s=timeout_s)
    except ValueError:  # no opinion is no reason to lose ours
        return None
    if not mapped.registered.all() or not focal.is_plausible(mapped.focal_px, pairs.size):
        return None
    cameras = to_cameras(mapped, (len(pairs.rgb), *pairs.size))
    return judged(views, cameras if focal_px is None else replace(cameras, focal_source="given"))


def map_globally(
    rgb: UInt8[np.ndarray, "T H W 3"],
    moving: Bool[np.ndarray, "T H W"] | None = None,
    *,
    focal_px: float | None = None,
    seed: int = 0,
    timeout_s: float = 600,
) -> Mapped:
    """Cameras of all frames, what moves left out, the focal length known or not. Raises ValueError if it cannot."""
    if not is_installed():
        raise ValueError("a second opinion asks for pycolmap: pip install pycolmap")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_frames(folder, rgb, moving)
        command = [
            sys.executable,
            "-m",
            "annotate.cameras.global_mapper",
            name,
            str(seed),
            *([] if focal_px is None else [str(focal_px)]),
        ]
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
                world_from_cam=estimate.world_from_cam(out["cam_from_world"]),
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
