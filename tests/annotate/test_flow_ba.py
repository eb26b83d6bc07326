"""Cameras from flow, held against worlds we know; and the flags where a world cannot be known."""

import math
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import pytest
import scene
import torch
from test_multiview import SIZE, TrueFlow

from annotate.cameras import estimate, keyframes, second_opinion
from annotate.cameras.flow_ba import FlowBA, _FlowBA, to_cameras
from annotate.cameras.second_opinion import Mapped, Verdict
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from pipelines import recipes
from shared.clip import AnnotatedClip, Cameras

SMALL = {"frames": 12, "height": 120, "width": 160, "focal": 150.0}


def bare(clip: AnnotatedClip) -> AnnotatedClip:
    """Only the pixels."""
    return AnnotatedClip(id=clip.id, rgb=clip.rgb, fps=clip.fps, source=clip.source, frames=clip.frames)


def labeled(clip: AnnotatedClip, knobs: FlowBA | None = None) -> Cameras:
    cameras = (knobs or FlowBA()).load()(bare(clip), Dis().load()).cameras
    assert cameras is not None
    return cameras


def turn_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between rotations."""
    trace = (a[:, :3, :3].mT @ b[:, :3, :3]).trace(axis1=1, axis2=2)
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def test_texture_is_a_share_where_rounding_makes_eigenvalues_negative() -> None:
    """Stripes have no second direction: a weight of -1e-7 has no root, and all poses would be lost."""
    v, u = np.mgrid[:240, :320]
    stripes = np.repeat((128 + 60 * np.sin((u + v) / 4))[..., None], 3, axis=2).astype(np.uint8)
    strength = keyframes.texture(stripes, torch.from_numpy(np.stack((u, v), -1).reshape(-1, 2) + 0.5))
    assert 0 <= strength.min() <= strength.max() <= 1


def test_a_still_camera_is_called_still() -> None:
    cameras = labeled(scene.clip("static", **SMALL))
    assert cameras.degenerate == "static_camera"
    assert (cameras.world_from_cam == np.eye(4)).all()
    assert cameras.focal_source == "prior"


def test_a_turning_camera_has_rotations_and_no_translation() -> None:
    truth = scene.clip("pure_rotation", **SMALL)
    cameras = labeled(truth)
    assert truth.cameras is not None
    assert cameras.degenerate is not None
    assert "rotation_only" in cameras.degenerate
    assert not cameras.world_from_cam[:, :3, 3].any()
    known = labeled(truth, FlowBA(horizontal_fov_deg=math.degrees(2 * math.atan(80 / 150))))
    assert known.focal_source == "given"
    assert known.intrinsics[0, 0] == pytest.approx(150)
    assert turn_deg(known.world_from_cam, truth.cameras.world_from_cam).max() < 0.15


def test_a_plane_leaves_the_focal_length_in_doubt() -> None:
    def scores(kind: str) -> tuple[str, float]:
        found = FlowBA().load()(bare(scene.clip(kind, **SMALL)), Dis().load())
        assert found.cameras is not None
        return found.cameras.degenerate or "", found.scores["cameras_plane_share"]

    flags, share = scores("planar")
    assert "focal_weak" in flags.split(",")
    assert share > 0.9
    assert scores("orbit")[1] < 0.8


def test_one_frame_is_a_still_camera() -> None:
    clip = bare(scene.tiny(frames=2))
    one = replace(clip, rgb=clip.rgb[:1], frames=clip.frames[:1])
    assert labeled(one).degenerate == "static_camera"


def test_noise_has_no_cameras() -> None:
    """Frames that have nothing in common are never given cameras without a flag."""
    rgb = np.random.default_rng(0).integers(0, 255, (9, 60, 80, 3), dtype=np.uint8)
    clip = AnnotatedClip(id="noise", rgb=rgb, fps=8.0, source="noise", frames=np.arange(9))
    assert labeled(clip).degenerate


def test_a_blank_clip_does_not_crash() -> None:
    clip = AnnotatedClip(
        id="blank", rgb=np.full((9, 60, 80, 3), 90, np.uint8), fps=8.0, source="blank", frames=np.arange(9)
    )
    assert labeled(clip).degenerate == "static_camera"


def test_truth_is_kept() -> None:
    clip = scene.tiny()
    assert FlowBA().load()(clip, Dis().load()) is clip


@pytest.mark.slow
def test_orbit_at_any_size() -> None:
    """The accuracy gate of everyday; the same clip enlarged is worked on at its old size and gives the same cameras."""
    truth = scene.clip("orbit", frames=24, height=180, width=240, focal=225.0)
    assert truth.cameras is not None
    cameras = labeled(truth)
    assert cameras.degenerate is None
    assert cameras.intrinsics[0, 0] == pytest.approx(225, rel=0.06)
    assert turn_deg(cameras.world_from_cam, truth.cameras.world_from_cam).max() < 0.8
    center, true_center = cameras.world_from_cam[:, :3, 3], truth.cameras.world_from_cam[:, :3, 3]
    scale = (center * true_center).sum() / (center**2).sum()
    path = np.linalg.norm(np.diff(true_center, axis=0), axis=1).sum()
    assert np.linalg.norm(scale * center - true_center, axis=1).max() < 0.02 * path
    twice = np.stack([cv2.resize(frame, (480, 360), interpolation=cv2.INTER_CUBIC) for frame in truth.rgb])
    large = labeled(replace(bare(truth), rgb=twice), FlowBA(long_side_px=240))
    assert large.intrinsics[0, 0] == pytest.approx(2 * cameras.intrinsics[0, 0], rel=0.03)
    assert large.intrinsics[0, 2:].tolist() == [240, 180]


def test_frames_are_compared_with_keyframes_around_them() -> None:
    keys = [0, 5, 10, 15, 20]
    assert keyframes.around(keys, 7) == [1, 2, 3] or keyframes.around(keys, 7) == [1, 2, 0]
    assert keyframes.around(keys, 10) == [0, 1, 3, 4]
    assert keyframes.around([0, 2], 1) == [0, 1]


@pytest.mark.parametrize(
    ("policy", "flags", "due"),
    [
        ("never", "poor_fit", False),
        ("flagged", None, False),
        ("flagged", "focal_weak,poor_fit", True),
        ("always", None, True),
        ("always", "static_camera", False),
        ("always", "rotation_only,focal_weak", False),
    ],
)
def test_when_a_second_opinion_is_due(policy: str, flags: str | None, due: bool) -> None:
    assert second_opinion.is_due(policy, flags) is due


@pytest.mark.parametrize(
    ("policy", "asked"), [("never", []), ("flagged", ["low_parallax"]), ("always", [None, "low_parallax"])]
)
def test_the_knob_decides_who_is_asked(
    policy: Literal["never", "flagged", "always"], asked: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the recipe, as `--set cameras.second_opinion=` sets it, on an unflagged, a flagged and a still camera."""
    knobs = recipes.annotate_recipe("embedded", [f"cameras.second_opinion={policy}"]).cameras
    assert isinstance(knobs, FlowBA)
    truth, seen = scene.tiny(), []

    def ask(pairs: PairFlows, ours: Cameras, timeout_s: float) -> tuple[Cameras, dict[str, float]]:
        seen.append(ours.degenerate)
        return ours, {}

    monkeypatch.setattr(second_opinion, "is_installed", lambda: True)
    monkeypatch.setattr(second_opinion, "ask", ask)
    assert truth.cameras is not None
    for flags in (None, "low_parallax", "static_camera"):
        _FlowBA(knobs)._second(replace(truth.cameras, degenerate=flags), PairFlows(truth.rgb, Dis().load()))
    assert seen == asked


def test_other_cameras_of_a_wrong_focal_length_are_flagged() -> None:
    """However well they fit: let go, their focal length leaves."""
    truth = scene.clip("orbit", seed=0, **SIZE)
    views = estimate.look(PairFlows(truth.rgb, TrueFlow("orbit")))
    assert truth.cameras is not None
    right = replace(truth.cameras, focal_source="self_calibrated")
    found = estimate.estimate(views.pairs, 1.2 * SIZE["focal"])
    wrong = replace(to_cameras(found, views.pairs.size, "wrong"), focal_source="self_calibrated")
    verdict = second_opinion.judged(views, right)
    assert verdict.cameras.degenerate is None
    assert verdict.rel_ci < 0.05
    off = second_opinion.judged(views, wrong)
    assert "focal_weak" in (off.cameras.degenerate or "")
    assert not second_opinion.is_better(off, verdict)


@pytest.mark.parametrize(
    ("area", "flags", "better"), [(0.61, "focal_weak", True), (0.59, None, False), (0.9, "poor_fit", False)]
)
def test_the_rule_of_adoption(area: float, flags: str | None, better: bool) -> None:
    """A fifth more of the flow, and no flag that forbids depth."""
    cameras = scene.tiny().cameras
    assert cameras is not None
    ours = Verdict(cameras=cameras, area=0.5, sigma_px=0.2, rel_ci=0.02)
    theirs = replace(ours, cameras=replace(cameras, degenerate=flags), area=area)
    assert second_opinion.is_better(theirs, ours) is better


@pytest.mark.slow
@pytest.mark.skipif(not second_opinion.is_installed(), reason="pycolmap is not installed: extra second-opinion")
def test_the_mapper_is_asked_twice_and_keeps_a_known_focal_length() -> None:
    truth = scene.clip("orbit", **SMALL | {"frames": 9})
    fov_deg = math.degrees(2 * math.atan(80 / 150))
    found = FlowBA(second_opinion="always", horizontal_fov_deg=fov_deg).load()(bare(truth), Dis().load())
    assert 0 < found.scores["second_opinion_theirs"] < 1
    mapped = second_opinion.map_globally(truth.rgb, truth.motion.dynamic, focal_px=150.0)
    assert mapped.registered.all()
    assert mapped.focal_px == 150


def test_a_missing_mapper_is_named_in_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "is_installed", lambda: False)
    truth = scene.tiny()
    assert truth.cameras is not None
    ours = replace(truth.cameras, degenerate="focal_weak")
    cameras, _ = _FlowBA(FlowBA(second_opinion="flagged"))._second(ours, PairFlows(truth.rgb, Dis().load()))
    assert cameras.degenerate == f"focal_weak,{second_opinion.MISSING}"
    with pytest.raises(ValueError, match="pip install pycolmap"):
        second_opinion.map_globally(scene.tiny().rgb)


def test_only_cameras_that_explain_more_are_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """True poses win over wrong ones, and wrong ones do not win over true ones."""
    truth = scene.clip("orbit", **SMALL)
    assert truth.cameras is not None
    true = truth.cameras.world_from_cam
    wrong = true.copy()
    wrong[:, :3, 3] = np.random.default_rng(0).normal(0, 0.2, (len(true), 3)) * (np.arange(len(true)) > 0)[:, None]
    pairs = PairFlows(truth.rgb, Dis().load())

    def opinion(poses: np.ndarray) -> None:
        mapped = Mapped(world_from_cam=poses, registered=np.ones(len(poses), bool), focal_px=150.0)
        monkeypatch.setattr(second_opinion, "map_globally", lambda *_, **__: mapped)

    ours = replace(truth.cameras, world_from_cam=wrong, degenerate="poor_fit")
    opinion(true)
    adopted, scores = second_opinion.ask(pairs, ours, 1.0)
    assert (adopted.world_from_cam == true).all()
    assert scores["second_opinion_theirs"] > second_opinion.MIN_RATIO * scores["second_opinion_ours"]
    assert "poor_fit" not in (adopted.degenerate or "")  # the flags are those that our tests give the new cameras
    opinion(wrong)
    kept, _ = second_opinion.ask(pairs, truth.cameras, 1.0)
    assert kept is truth.cameras
