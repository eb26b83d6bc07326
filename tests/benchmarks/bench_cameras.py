"""Cameras on clips unlike those they were made on: is there a confident wrong answer, and does the second opinion help?

    python tests/benchmarks/bench_cameras.py [--only NAMES] [--second] [--json FILE]

Closed-form rooms with other ways of the camera, focal lengths, sizes, lengths and seeds than `bench_labels.py`, some of them
spoilt (noise, blur, compression, flicker, lens, zoom), and simulated scenes. Wrong is an ATE above 2 % of the path or a focal
length off by more than 10 %; confident, if nothing is flagged. `--second` asks pycolmap's global mapper too, and prints what
decides between the two.
"""

import argparse
import io
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import scene

from annotate.cameras import degenerate, estimate, second_opinion
from annotate.cameras.flow_ba import FlowBA, enlarged, to_cameras
from annotate.datasets.simulated import Mujoco
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from pipelines.evaluate import evaluate_clip
from pipelines.truth import Truth
from shared.clip import AnnotatedClip, Cameras

WRONG_ATE_PERCENT, WRONG_FOCAL_PERCENT = 2.0, 10.0
Path6 = Callable[[np.ndarray], np.ndarray]
"""stage_from_cam of frames counted from the middle one."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A closed-form room, the camera's way through it, and what spoils its pictures."""

    kind: str
    """Of `tests/scene.py`: room and movers, and the way unless there is another."""
    way: Path6 | None = None
    focal: float = 300.0
    height: int = 240
    width: int = 320
    frames: int = 25
    seed: int = 11
    spoil: Callable[[np.ndarray], np.ndarray] | None = None
    zoom: float = 1.0
    """How much longer the focal length is at the end."""


def _scaled(kind: str, pace: float) -> Path6:
    """The way of another kind at another speed, never backwards in what it turns."""
    return lambda i: scene._camera(kind, i * pace, np.random.default_rng(5))


def _ahead(i: np.ndarray) -> np.ndarray:
    """Straight along the axis, nothing turns: the focal length is known from the rims alone."""
    return scene._poses(0 * i, 0 * i, 0.05 * i)


def _sideways(i: np.ndarray) -> np.ndarray:
    """Straight sideways, nothing turns: any focal length fits."""
    return scene._poses(0.04 * i, 0 * i, 0 * i)


def _step_by_step(i: np.ndarray) -> np.ndarray:
    """Walking ahead: two bumps a second, a little sway."""
    bump, sway = 0.03 * np.sin(i * 1.6), 0.04 * np.sin(i * 0.8)
    return scene._poses(
        sway, bump, 0.05 * i, yaw_deg=1.5 * np.sin(i / 7), pitch_deg=np.sin(i * 1.6) / 2, roll_deg=sway * 20
    )


def _looking_around(i: np.ndarray) -> np.ndarray:
    """Turning on the spot, the hand a few centimeters off."""
    return scene._poses(0.03 * np.sin(i / 9), 0.01 * np.cos(i / 5), 0 * i, yaw_deg=0.7 * i, pitch_deg=2 * np.sin(i / 8))


def _stop_and_go(i: np.ndarray) -> np.ndarray:
    way = 0.05 * np.maximum(i, 0)
    return scene._poses(way, 0 * i, 0.3 * way, yaw_deg=-6 * way)


def _up(i: np.ndarray) -> np.ndarray:
    """A crane: up, tilting down."""
    return scene._poses(0 * i, -0.03 * i, 0.01 * i, pitch_deg=-0.5 * i)


def _curve(i: np.ndarray) -> np.ndarray:
    """Ahead round a bend."""
    turn = np.radians(0.8 * i)
    return scene._poses(1.5 * (1 - np.cos(turn)), 0.02 * np.sin(i / 4), 3 * np.sin(turn), yaw_deg=np.degrees(turn))


def _back_and_forth(i: np.ndarray) -> np.ndarray:
    return scene._poses(0.4 * np.sin(i / 5), 0 * i, 0.1 * np.cos(i / 5), yaw_deg=-4 * np.sin(i / 5))


def _noise(rgb: np.ndarray) -> np.ndarray:
    return np.clip(rgb + np.random.default_rng(0).normal(0, 10, rgb.shape), 0, 255).astype(np.uint8)


def _blur(rgb: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 2.0) for frame in rgb])


def _dim(rgb: np.ndarray) -> np.ndarray:
    """A quarter of the light, noisier."""
    return np.clip(rgb / 4 + np.random.default_rng(1).normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)


def _flicker(rgb: np.ndarray) -> np.ndarray:
    gain = 1 + 0.2 * np.sin(np.arange(len(rgb)) * 1.1)[:, None, None, None]
    return np.clip(rgb * gain, 0, 255).astype(np.uint8)


def _compressed(rgb: np.ndarray) -> np.ndarray:
    """Through H.264 at a low rate."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8, options={"crf": "34"})
        stream.height, stream.width, stream.pix_fmt = rgb.shape[1], rgb.shape[2], "yuv420p"
        for frame in rgb:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as back:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in back.decode(video=0)])


def _barrel(rgb: np.ndarray) -> np.ndarray:
    """A lens that bends straight lines: k1 = -0.12 at the long side's half, unmodeled."""
    height, width = rgb.shape[1:3]
    u, v = scene.centers(height, width) - np.array([width / 2, height / 2])[:, None, None]
    stretch = 1 + 0.12 * (u**2 + v**2) / (width / 2) ** 2
    at = ((u * stretch + width / 2 - 0.5).astype(np.float32), (v * stretch + height / 2 - 0.5).astype(np.float32))
    return np.stack([cv2.remap(frame, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) for frame in rgb])


SHOTS = {
    "ahead": Shot(kind="dolly", way=_ahead),
    "ahead-500": Shot(kind="dolly", way=_ahead, focal=500, seed=12, frames=49),
    "sideways": Shot(kind="lateral", way=_sideways),
    "walking": Shot(kind="dolly", way=_step_by_step, focal=270, seed=13),
    "walking-49": Shot(kind="dolly", way=_step_by_step, focal=350, seed=14, frames=49),
    "looking-around": Shot(kind="handheld", way=_looking_around, seed=15),
    "stop-and-go": Shot(kind="lateral", way=_stop_and_go, seed=16, frames=49),
    "crane": Shot(kind="lateral", way=_up, focal=260, seed=17),
    "curve-200": Shot(kind="orbit", way=_curve, focal=200, seed=18),
    "curve-400": Shot(kind="orbit", way=_curve, focal=400, seed=19, frames=49),
    "back-and-forth": Shot(kind="orbit", way=_back_and_forth, seed=20, frames=49),
    "lateral-fast": Shot(kind="lateral", way=_scaled("lateral", 3.0), seed=21),
    "lateral-slow": Shot(kind="lateral", way=_scaled("lateral", 0.15), seed=22),
    "orbit-fast": Shot(kind="orbit", way=_scaled("orbit", 3.0), focal=350, seed=23),
    "orbit-slow": Shot(kind="orbit", way=_scaled("orbit", 0.15), seed=24),
    "orbit-600": Shot(kind="orbit", focal=600, seed=25, frames=49),
    "handheld-200": Shot(kind="handheld", focal=200, seed=26),
    "handheld-550": Shot(kind="handheld", focal=550, seed=27, frames=49),
    "handheld-13": Shot(kind="handheld", seed=28, frames=13),
    "handheld-31": Shot(kind="handheld", seed=31, frames=49),
    "handheld-32": Shot(kind="handheld", seed=32, frames=25, focal=400),
    "dolly-13": Shot(kind="dolly", seed=29, frames=13),
    "dolly-550": Shot(kind="dolly", seed=30, frames=49, focal=550),
    "follow-240": Shot(kind="follow", focal=240, seed=33),
    "follow-500": Shot(kind="follow", focal=500, seed=34, frames=49),
    "portrait-orbit": Shot(kind="orbit", height=320, width=180, focal=280, seed=35),
    "portrait-handheld": Shot(kind="handheld", height=320, width=180, focal=300, seed=36, frames=49),
    "wide-walking": Shot(kind="dolly", way=_step_by_step, height=360, width=640, focal=480, seed=37),
    "wide-lateral": Shot(kind="lateral", height=360, width=640, focal=600, seed=38, frames=25),
    "low-texture": Shot(kind="low_texture", focal=360, seed=39),
    "low-texture-noise": Shot(kind="low_texture", seed=40, spoil=_noise),
    "planar-400": Shot(kind="planar", focal=400, seed=41),
    "crowd": Shot(kind="many_moving", seed=42),
    "crowd-orbit": Shot(kind="many_moving", way=_scaled("orbit", 1.0), seed=43, frames=49),
    "crowd-walking": Shot(kind="many_moving", way=_step_by_step, seed=44),
    "crowd-400": Shot(kind="many_moving", focal=400, seed=45, frames=49),
    "pan": Shot(kind="pure_rotation", focal=420, seed=46),
    "noise": Shot(kind="orbit", seed=47, spoil=_noise),
    "blur": Shot(kind="handheld", seed=48, spoil=_blur),
    "dim": Shot(kind="lateral", seed=49, spoil=_dim),
    "flicker": Shot(kind="dolly", seed=50, spoil=_flicker),
    "compressed-orbit": Shot(kind="orbit", seed=51, spoil=_compressed),
    "compressed-handheld": Shot(kind="handheld", seed=52, spoil=_compressed, frames=49),
    "barrel": Shot(kind="orbit", seed=53, spoil=_barrel),
    "zoom-static": Shot(kind="static", seed=54, zoom=1.6),
    "zoom-lateral": Shot(kind="lateral", seed=55, zoom=1.5),
    "zoom-dolly": Shot(kind="dolly", seed=56, zoom=1.4, frames=49),
}
SETS = ("ours", "theirs1", "theirs2", "true", "off")
"""Of cameras: ours, the mapper's first and second, the true ones, and ours with a focal length a fifth too long."""
SIMULATED = {f"mujoco-{seed}": seed for seed in range(3101, 3113)}


def main() -> None:
    """Print a line a clip as it is done, and how many were confidently wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of clips, such as crane or mujoco-3101")
    parser.add_argument(
        "--second", action="store_true", help="also ask pycolmap's global mapper (extra second-opinion)"
    )
    parser.add_argument(
        "--controls", action="store_true", help="judge true and wrong cameras beside ours, without pycolmap"
    )
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'clip':20}{'ATE %':>9}{'f %':>7}{'ci %':>6}{'s/frame':>9}  flags")
    found: dict[str, dict[str, Any]] = {}
    for name, clip, truth in clips(asked.only):
        found[name] = measure(clip, truth, asked.second, asked.second or asked.controls)
        print(line(name, found[name]), flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1))
    wrong = [name for name, numbers in found.items() if numbers["wrong"]]
    silent = [name for name in wrong if not found[name]["flags"]]
    flagged_right = [name for name, numbers in found.items() if numbers["flags"] and not numbers["wrong"]]
    print(f"{len(found)} clips, wrong {len(wrong)}, of those without a flag: {', '.join(silent) or 'none'}")
    print(f"flagged and right: {', '.join(flagged_right) or 'none'}")
    for ratio in (1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0) if asked.second or asked.controls else ():
        print(f"adopt from {ratio:.2f} times ours:  {adoptions(found, ratio)}")


def clips(only: list[str] | None) -> Iterator[tuple[str, AnnotatedClip, Truth]]:
    """Name, pixels, true cameras."""
    for name, shot in SHOTS.items():
        if not only or name in only:
            yield name, *filmed(name, shot)
    for name, seed in SIMULATED.items():
        if not only or name in only:
            yield name, *simulated(name, seed)


def filmed(name: str, shot: Shot) -> tuple[AnnotatedClip, Truth]:
    """Rendered, zoomed, spoilt."""
    world = scene.build(
        shot.kind, frames=shot.frames, height=shot.height, width=shot.width, focal=shot.focal, seed=shot.seed
    )
    if shot.way is not None:
        world = replace(world, stage_from_cam=shot.way(np.arange(shot.frames) - (shot.frames - 1) / 2))
    rgb = scene.render(world, shot.height, shot.width)
    zoom = np.geomspace(1, shot.zoom, shot.frames)
    rgb = np.stack([_enlarged(frame, ratio) for frame, ratio in zip(rgb, zoom)])
    intrinsics = np.tile(np.array(world.intrinsics), (shot.frames, 1))
    intrinsics[:, :2] *= zoom[:, None]
    poses = np.linalg.inv(world.stage_from_cam[0]) @ world.stage_from_cam
    return _pair(name, shot.spoil(rgb) if shot.spoil else rgb, poses, intrinsics)


def simulated(name: str, seed: int) -> tuple[AnnotatedClip, Truth]:
    """Every third frame of three seconds at 24 a second, as `annotate` would cut it."""
    seen = Mujoco(height=240, width=320, frames=73).open(f"mujoco://{seed:06d}")
    every = [seen.frame(t) for t in range(0, 73, 3)]
    poses = np.stack([frame.world_from_cam for frame in every])
    rgb = np.stack([frame.rgb for frame in every])
    return _pair(name, _compressed(rgb), np.linalg.inv(poses[0]) @ poses, np.stack([f.intrinsics for f in every]))


def _enlarged(frame: np.ndarray, ratio: float) -> np.ndarray:
    height, width = frame.shape[:2]
    if ratio == 1:
        return frame
    middle = np.array([[ratio, 0, (1 - ratio) * (width - 1) / 2], [0, ratio, (1 - ratio) * (height - 1) / 2]])
    return cv2.warpAffine(frame, middle, (width, height), flags=cv2.INTER_CUBIC)


def _pair(name: str, rgb: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray) -> tuple[AnnotatedClip, Truth]:
    frames = np.arange(len(rgb))
    truth = Truth(
        name=name, frames=frames, world_from_cam=poses, intrinsics=intrinsics, pairs=np.zeros((0, 2), np.int64)
    )
    return AnnotatedClip(id=name, rgb=rgb, fps=8.0, source=name, frames=frames), truth


def measure(clip: AnnotatedClip, truth: Truth, second: bool, judge: bool) -> dict[str, Any]:
    """Errors and flags of ours; with `second`, of the mapper's two answers, and each one's share of valid depth."""
    pairs = PairFlows.of(clip.rgb, Dis().load())
    start = time.process_time()
    out = FlowBA().load()(clip, pairs)
    seconds = time.process_time() - start
    assert out.cameras is not None
    found = errors(clip, out.cameras, truth)
    numbers = {
        "flags": out.cameras.degenerate or "",
        "focal_source": out.cameras.focal_source,
        "ci_percent": 100 * (out.cameras.focal_rel_ci or 0),
        "cpu_s_per_frame": seconds / len(clip.rgb),
        **{f"ours.{name}": value for name, value in found.items()},
        **dict(out.scores),
    }
    return numbers | {"wrong": is_wrong(found)} | (opinions(pairs, clip, out.cameras, truth, second) if judge else {})


def opinions(pairs: PairFlows, clip: AnnotatedClip, ours: Cameras, truth: Truth, second: bool) -> dict[str, Any]:
    """True errors of the mapper's cameras, without and with a mask, and what our own tests say of theirs and ours."""
    views = estimate.look(pairs.at_most(FlowBA().long_side_px))
    size, start = views.pairs.size, used_s()
    mine = second_opinion.judged(views, enlarged(ours, clip.shape[1:], (len(clip.rgb), *size)))
    theirs = second_opinion.opinions(views, mine, ours.degenerate, 600.0) if second else []
    numbers: dict[str, Any] = {"second.cpu_s_per_frame": (used_s() - start) / len(clip.rgb)}
    others = {f"theirs{place}": verdict for place, verdict in enumerate(theirs, 1)}
    others |= {name: second_opinion.judged(views, cameras) for name, cameras in controls(views, truth).items()}
    for name, verdict in {"ours": mine, **others}.items():
        numbers |= {f"{name}.{key}": getattr(verdict, key) for key in ("area", "sigma_px", "rel_ci")}
        numbers[f"{name}.valid"] = float(second_opinion.dense(views, verdict.cameras).valid.mean())
        numbers[f"{name}.flags"] = verdict.cameras.degenerate or ""
        found = errors(clip, enlarged(verdict.cameras, size, clip.shape), truth)
        numbers |= {f"{name}.{key}": value for key, value in found.items()}
    return numbers


def controls(views: estimate.Views, truth: Truth) -> dict[str, Cameras]:
    """The true cameras, and what comes out with a focal length that is a fifth too long: what a rule must tell apart."""
    size, shape = views.pairs.size, (len(views.pairs.rgb), *views.pairs.size)
    assert truth.world_from_cam is not None
    assert truth.intrinsics is not None
    focal_px = float(truth.intrinsics[:, 0].mean() / truth.intrinsics[0, 2] * size[1] / 2)
    mapped = second_opinion.Mapped(
        world_from_cam=truth.world_from_cam, registered=np.ones(shape[0], bool), focal_px=focal_px
    )
    off = to_cameras(estimate.estimate(views.pairs, 1.2 * focal_px), size, "off")
    return {"true": second_opinion.to_cameras(mapped, shape), "off": replace(off, focal_source="self_calibrated")}


def used_s() -> float:
    """CPU seconds of this process and of those it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def errors(clip: AnnotatedClip, cameras: Cameras, truth: Truth) -> dict[str, float]:
    """What `evaluate labels` says of cameras."""
    seen = evaluate_clip(clip.with_(cameras=cameras), truth)
    names = ("ate_percent", "rpe_rotation_deg", "focal_error_percent")
    return {name: seen[f"cameras.{name}"] for name in names if f"cameras.{name}" in seen}


def is_wrong(found: dict[str, float]) -> bool:
    """Too far off to train on."""
    far = found.get("ate_percent", 0.0) > WRONG_ATE_PERCENT
    return far or found["focal_error_percent"] > WRONG_FOCAL_PERCENT


def adoptions(found: dict[str, dict[str, Any]], ratio: float) -> str:
    """Every set of cameras against every other of the same clip, by the rule of this ratio: how often it was right to take it."""
    count = {"better taken": 0, "better left": 0, "worse taken": 0, "worse left": 0}
    for numbers in found.values():
        there = [who for who in SETS if f"{who}.area" in numbers]
        for ours, theirs in itertools.permutations(there, 2):
            gain = badness(numbers, ours) / badness(numbers, theirs)
            if 0.67 < gain < 1.5:  # as good
                continue
            usable = not degenerate.is_unusable(numbers[f"{theirs}.flags"])
            taken = usable and numbers[f"{theirs}.area"] >= ratio * numbers[f"{ours}.area"]
            count[("better " if gain > 1 else "worse ") + ("taken" if taken else "left")] += 1
    return ", ".join(f"{name} {number}" for name, number in count.items())


def badness(numbers: dict[str, Any], who: str) -> float:
    """1 where cameras begin to be wrong; below a fifth of that all are equally good."""
    ate, focal = numbers.get(f"{who}.ate_percent", 0.0), numbers[f"{who}.focal_error_percent"]
    return max(ate / WRONG_ATE_PERCENT, focal / WRONG_FOCAL_PERCENT, 0.2)


def line(name: str, numbers: dict[str, Any]) -> str:
    """One row of the table."""
    path = f"{numbers['ours.ate_percent']:9.3f}" if "ours.ate_percent" in numbers else f"{'-':>9}"
    focal = f"{numbers['ours.focal_error_percent']:7.1f}{numbers['ci_percent']:6.1f}"
    mark = " WRONG" if numbers["wrong"] and not numbers["flags"] else ""
    row = f"{name:20}{path}{focal}{numbers['cpu_s_per_frame']:9.3f}  {numbers['flags']}{mark}"
    for who in SETS:
        if f"{who}.valid" in numbers:
            ate, off = numbers.get(f"{who}.ate_percent", np.nan), numbers[f"{who}.focal_error_percent"]
            told = " ".join(f"{key} {numbers[f'{who}.{key}']:.3f}" for key in ("valid", "area", "sigma_px", "rel_ci"))
            row += f"\n    {who:8} ATE {ate:.3f} % f {off:.1f} %  {told}  {numbers[f'{who}.flags']}"
    return row


if __name__ == "__main__":
    main()
