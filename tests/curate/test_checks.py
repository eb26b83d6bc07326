"""Each check keeps the truth and notices the error it exists for; SpatialVID's statistics against sums done by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scene
from scipy.ndimage import minimum_filter
from scipy.spatial.transform import Rotation

from curate import measure
from curate.check import Check, Limit, Verdict, judge, limits
from curate.checks import Checks, camera_path
from shared.clip import AnnotatedClip, Cameras

SIZE = {"frames": 17, "height": 96, "width": 128, "focal": 120.0}
Change = Callable[[AnnotatedClip], AnnotatedClip]


def true(kind: str) -> AnnotatedClip:
    return scene.clip(kind, **SIZE)


def worst(scores: dict[str, float]) -> dict[str, Verdict]:
    return {name: judge(name, check, scores) for name, check in Checks() if check is not None}


def with_cameras(clip: AnnotatedClip, **changes: object) -> AnnotatedClip:
    return clip.with_(cameras=replace(clip.cameras, **changes))


def moved(clip: AnnotatedClip, by: np.ndarray) -> AnnotatedClip:
    poses = clip.cameras.world_from_cam.copy()
    poses[:, :3, 3] += by
    return with_cameras(clip, world_from_cam=poses)


@pytest.mark.parametrize("kind", scene.KINDS)
def test_true_labels_pass_every_check(kind: str) -> None:
    verdicts = worst(measure.scores(true(kind)))
    assert {name: v.reason for name, v in verdicts.items() if v.outcome != "pass"} == {}


def scaled_depth(clip: AnnotatedClip, factor: np.ndarray) -> AnnotatedClip:
    z = clip.depth.z * factor.astype(np.float32).reshape(-1, *(1,) * (3 - factor.ndim))
    return clip.with_(depth=replace(clip.depth, z=z.astype(np.float32)))


def grown_edges(clip: AnnotatedClip) -> AnnotatedClip:
    z = np.stack([minimum_filter(frame, size=7) for frame in clip.depth.z])
    return clip.with_(depth=replace(clip.depth, z=z))


def noisy_flow(clip: AnnotatedClip) -> AnnotatedClip:
    noise = np.random.default_rng(0).normal(0, 2, clip.flow.forward.shape).astype(np.float32)
    return clip.with_(flow=replace(clip.flow, forward=clip.flow.forward + noise))


def swapped_frames(clip: AnnotatedClip) -> AnnotatedClip:
    order = np.arange(len(clip.rgb))
    order[[7, 11]] = order[[11, 7]]
    return with_cameras(clip, world_from_cam=clip.cameras.world_from_cam[order])


def longer_focal(clip: AnnotatedClip) -> AnnotatedClip:
    return with_cameras(clip, intrinsics=clip.cameras.intrinsics * (1.5, 1.5, 1, 1))


def frozen_camera(clip: AnnotatedClip) -> AnnotatedClip:
    return with_cameras(clip, world_from_cam=np.tile(np.eye(4), (len(clip.rgb), 1, 1)))


def inverted_poses(clip: AnnotatedClip) -> AnnotatedClip:
    poses = np.linalg.inv(clip.cameras.world_from_cam)
    poses[:, 3] = (0, 0, 0, 1)
    return with_cameras(clip, world_from_cam=poses)


def jittered_poses(clip: AnnotatedClip) -> AnnotatedClip:
    return moved(
        clip, np.random.default_rng(0).normal(0, 0.2, (len(clip.rgb), 3)) * (np.arange(len(clip.rgb)) > 0)[:, None]
    )


def wrong_scene_flow(clip: AnnotatedClip) -> AnnotatedClip:
    return clip.with_(motion=replace(clip.motion, scene_flow=-clip.motion.scene_flow))


def leaking_scene_flow(clip: AnnotatedClip) -> AnnotatedClip:
    flow = clip.motion.scene_flow.copy()
    flow[~clip.motion.dynamic[:-1]] = 1e-3
    return clip.with_(motion=replace(clip.motion, scene_flow=flow))


def missed_movers(clip: AnnotatedClip) -> AnnotatedClip:
    return clip.with_(motion=replace(clip.motion, dynamic=np.zeros_like(clip.motion.dynamic)))


def one_turned_camera(clip: AnnotatedClip) -> AnnotatedClip:
    poses = clip.cameras.world_from_cam.copy()
    poses[8, :3, :3] = Rotation.from_rotvec((0, 0.3, 0)).as_matrix()
    return with_cameras(clip, world_from_cam=poses)


def zooming(clip: AnnotatedClip) -> AnnotatedClip:
    zoom = np.linspace(1, 1.5, len(clip.rgb))[:, None]
    return with_cameras(clip, intrinsics=clip.cameras.intrinsics * np.concatenate((zoom, zoom, zoom**0, zoom**0), 1))


def holes(clip: AnnotatedClip) -> AnnotatedClip:
    valid = np.zeros_like(clip.depth.valid)
    valid[:, ::10] = True
    return clip.with_(depth=replace(clip.depth, valid=valid, z=np.where(valid, clip.depth.z, 0)))


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("flow_cycle", noisy_flow),
        ("rigid_flow", longer_focal),
        ("rigid_flow", frozen_camera),
        ("rigid_flow", swapped_frames),
        ("depth_reprojection", lambda clip: scaled_depth(clip, np.linspace(1, 2, 17))),
        ("depth_edges", grown_edges),
        ("rigid_flow", missed_movers),
        ("scale_drift", lambda clip: scaled_depth(clip, np.linspace(1, 1.8, 17))),
        ("sampson", inverted_poses),
        ("camera_path", jittered_poses),
        ("camera_path", one_turned_camera),
        ("focal", zooming),
        ("coverage", holes),
        ("scene_flow", wrong_scene_flow),
        ("scene_flow", leaking_scene_flow),
        ("degenerate", lambda clip: with_cameras(clip, degenerate="focal_weak,poor_fit")),
    ],
)
def test_each_check_rejects_its_error(check: str, change: Change) -> None:
    verdict = worst(measure.scores(change(true("orbit"))))[check]
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith(f"{check}: ")
    assert not verdict.keep


@pytest.mark.parametrize(
    ("speed_px", "off", "score"), [(8, 0.05, 0.4), (8, 1.0, 8), (40, 0.05, 1.0), (40, 1.0, 20), (200, 0.05, 1.0)]
)
def test_fast_movers_are_judged_by_parts_of_their_motion(speed_px: float, off: float, score: float) -> None:
    """Before a still camera all moves to the right, by flow as fast as said (px at 720 wide), by scene flow a part less."""
    clip = true("static")
    shape, px = clip.motion.scene_flow.shape[:3], speed_px * clip.shape[2] / 720
    step = px * 2 / float(clip.cameras.intrinsics[0, 0])
    flow = np.broadcast_to(np.float32((px, 0)), (*shape, 2)).copy()
    moves = replace(
        clip.motion,
        dynamic=np.ones_like(clip.motion.dynamic),
        scene_flow=np.broadcast_to(np.float32(((1 - off) * step, 0, 0)), (*shape, 3)).copy(),
        scene_flow_valid=np.ones(shape, bool),
    )
    clip = clip.with_(
        depth=replace(clip.depth, z=np.full_like(clip.depth.z, 2), valid=np.ones_like(clip.depth.valid)),
        flow=replace(clip.flow, forward=flow),
        motion=moves,
    )
    assert measure.scores(clip)["sf_reproj_px"] == pytest.approx(score, rel=1e-3)


def test_missed_movers_make_patches_and_tight_masks_make_none() -> None:
    """A ribbon of wrong pixels around each mover is no missed mover, however many they are."""
    clip = true("static")
    tight = np.stack([minimum_filter(frame, size=5) for frame in clip.motion.dynamic])
    ribbon = measure.scores(clip.with_(motion=replace(clip.motion, dynamic=tight)))
    missed = measure.scores(missed_movers(clip))
    assert ribbon["rigid_outliers"] > 0.02
    assert ribbon["rigid_patches"] < 0.002
    assert missed["rigid_patches"] > 0.1
    assert worst(missed)["rigid_flow"].outcome == "fail"
    assert measure.scores(clip)["rigid_patches"] == 0


def test_edges_are_judged_where_things_move_apart() -> None:
    """Before a still camera only movers tell how wide surfaces are; still walls beside still boxes would dilute what they tell."""
    clip = true("static")
    verdict = worst(measure.scores(clip))["depth_edges"]
    assert (verdict.outcome, worst(measure.scores(wide(clip)))["depth_edges"].outcome) == ("pass", "fail")
    resting = clip.with_(key_flow=replace(clip.key_flow, forward=np.zeros_like(clip.key_flow.forward)))
    assert "edge_outliers" not in measure.scores(resting), "nothing moves apart: nothing is known"


def wide(clip: AnnotatedClip) -> AnnotatedClip:
    """Near surfaces 4 pixels too wide: 22 at 720."""
    return clip.with_(depth=replace(clip.depth, z=np.stack([minimum_filter(frame, size=9) for frame in clip.depth.z])))


def test_checks_are_checks_and_scores_have_one_home() -> None:
    scores = measure.scores(true("orbit"))
    for _, check in Checks():
        assert isinstance(check, Check)
    names = [score for _, check in Checks() for score in type(check).model_fields]
    assert len(names) == len(set(names))
    described = {"dist_level"}
    assert set(scores) <= set(names) | described


def test_partly_filled_clips_have_fewer_scores() -> None:
    whole = true("lateral")
    bare = AnnotatedClip(id="bare", rgb=whole.rgb, fps=8.0, source="x", frames=whole.frames)
    assert measure.scores(bare) == {}
    assert set(measure.scores(bare.with_(flow=whole.flow))) == {"fb_ok", "fb_ok_worst"}
    posed = measure.scores(bare.with_(cameras=whole.cameras))
    assert "pose_turn_deg" in posed
    assert "parallax" not in posed
    one = AnnotatedClip(
        id="one", rgb=whole.rgb[:1], fps=8.0, source="x", frames=whole.frames[:1],
        depth=replace(whole.depth, z=whole.depth.z[:1], valid=whole.depth.valid[:1]),
        cameras=replace(whole.cameras, world_from_cam=np.eye(4)[None], intrinsics=whole.cameras.intrinsics[:1]),
    )  # fmt: skip
    assert measure.scores(one)["depth_cover"] == 1.0
    assert all(np.isfinite(v) for v in measure.scores(one).values())


def test_nothing_still_or_nothing_valid_is_no_crash() -> None:
    clip = true("orbit")
    for where in (np.ones_like(clip.motion.dynamic), np.zeros_like(clip.motion.dynamic)):
        found = measure.scores(clip.with_(motion=replace(clip.motion, dynamic=where)))
        assert all(np.isfinite(v) for v in found.values())
    nothing = np.zeros_like(clip.depth.valid)
    found = measure.scores(clip.with_(depth=replace(clip.depth, valid=nothing, z=np.zeros_like(clip.depth.z))))
    assert found["depth_cover"] == 0
    assert "rigid_flow_px" not in found


def test_pixel_scores_are_of_a_picture_720_wide() -> None:
    """One error, in pixels of half the size, is half as many pixels; its score is the same."""
    small, large = (
        scene.clip("orbit", frames=5, height=h, width=w, focal=f) for h, w, f in ((60, 80, 75.0), (120, 160, 150.0))
    )
    found = []
    for clip, error in ((small, 0.5), (large, 1.0)):
        wrong = replace(
            clip.flow,
            forward=clip.flow.forward + np.float32((error, 0)),
            backward=clip.flow.backward - np.float32((error, 0)),
        )
        found.append(measure.scores(clip.with_(flow=wrong))["rigid_flow_px"])
    assert found == pytest.approx([4.5, 4.5], rel=1e-3)


def test_judge_takes_the_worst_and_tells_why() -> None:
    off = dict.fromkeys(("rigid_flow_worst_px", "rigid_key_px", "rigid_outliers", "rigid_patches"))
    check = Checks().rigid_flow.changed(rigid_flow_px=Limit(flag_above=1, fail_above=2), **off)
    assert list(limits(check)) == ["rigid_flow_px", "rigid_flow_p90_px"]
    assert judge("r", check, {}) == Verdict(check="r", score=None, outcome="pass", reason="")
    assert judge("r", check, {"rigid_flow_px": 2.0}).outcome == "flag"
    verdict = judge("r", check, {"rigid_flow_px": 2.5, "rigid_flow_p90_px": 9.0})
    assert verdict == Verdict(check="r", score=2.5, outcome="fail", reason="r: rigid_flow_px is 2.5, above 2")


# SpatialVID's statistics and the bugs of their code that ours must not have


def poses_of(centers: np.ndarray, rotations: np.ndarray | None = None) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(centers), 1, 1))
    poses[:, :3, 3] = centers
    if rotations is not None:
        poses[:, :3, :3] = rotations
    return poses


def turned(degrees: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(np.radians(degrees)[:, None] * (0, 1, 0)).as_matrix()


def statistics(poses: np.ndarray, fps: float = 5.0, depth: float = 0.5) -> dict[str, float]:
    """At 5 poses a second and with everything half a unit away, as SpatialVID scales its clips."""
    clip = AnnotatedClip(
        id="path", rgb=np.zeros((len(poses), 8, 8, 3), np.uint8), fps=fps, source="x", frames=np.arange(len(poses))
    )
    cameras = Cameras(
        world_from_cam=poses, intrinsics=np.tile((8.0, 8, 4, 4), (len(poses), 1)), metric=False, source="x"
    )
    z = np.full(clip.shape, depth, np.float32)
    return measure.scores(clip.with_(cameras=cameras, depth=replace(scene.tiny().depth, z=z, valid=z > 0)))


def test_path_and_level_by_hand() -> None:
    centers = np.array([[0, 0, 0], [0.3, 0, 0], [0.3, 0.4, 0], [0.3, 0.4, 0.2]])
    found = statistics(poses_of(centers))
    assert found["move_dist"] == pytest.approx(0.9)
    assert found["dist_level"] == 2  # 0.28 is reached, 0.92 is not
    assert statistics(poses_of(centers), depth=5.0)["move_dist"] == pytest.approx(
        0.09
    )  # the same in a room ten times as large
    assert found["parallax"] == pytest.approx(0.9 / 0.5)


def test_poses_are_taken_five_times_a_second() -> None:
    zigzag = np.zeros((25, 3))
    zigzag[1::2, 0] = 0.1
    assert statistics(poses_of(zigzag), fps=5.0)["move_dist"] == pytest.approx(2.4)
    assert statistics(poses_of(zigzag), fps=10.0)["move_dist"] == pytest.approx(0)  # every second pose: always at 0


def test_a_turning_camera_stays_where_it_is() -> None:
    """Their cam-from-world translation gives a path of 2.57 here, and an anomaly when the turn begins."""
    forward = np.linspace((0, 0, 0), (0, 0, 1), 11)
    pan = np.r_[np.zeros(11), np.linspace(0, 90, 16)[1:]]
    centers = np.r_[forward, np.tile(forward[-1], (15, 1))]
    found = statistics(poses_of(centers, turned(pan)))
    assert found["move_dist"] == pytest.approx(1.0)
    assert found["rot_angle_rad"] == pytest.approx(np.pi / 2)
    theirs = -np.einsum("tji,tj->ti", turned(pan), centers)
    assert np.linalg.norm(np.diff(theirs, axis=0), axis=1).sum() == pytest.approx(2.57, abs=0.01)


def test_a_pan_far_from_the_start_is_no_anomaly() -> None:
    """3 units from the start a camera stands still and begins to pan, 6 degrees a pose: -Rᵀc leaps by 2 · 3 sin 3° = 0.31."""
    centers, pan = np.tile((0.0, 0, 3), (20, 1)), turned(np.r_[np.zeros(8), 6.0 * np.arange(12)])
    assert statistics(poses_of(centers, pan))["pose_anomaly"] == 0
    theirs = -np.einsum("tji,tj->ti", pan, centers)
    assert np.linalg.norm(np.diff(theirs, axis=0), axis=1).max() == pytest.approx(6 * np.sin(np.radians(3)))
    assert camera_path.anomalies(theirs) > 0


def test_what_is_forward_is_told_by_the_camera_that_moves() -> None:
    """After a right angle's pan to the right, driving on is a dolly; along the first camera's axes it would be a truck."""
    centers = np.r_[np.zeros((7, 3)), np.linspace((0, 0, 0), (2, 0, 0), 9)[1:]]
    pan = turned(np.r_[np.linspace(0, 90, 7), np.full(8, 90.0)])
    found = statistics(poses_of(centers, pan))
    assert (found["dolly"], found["truck"], found["pedestal"]) == pytest.approx((1, 0, 0), abs=1e-12)
    back_and_up = statistics(poses_of(np.linspace((0, 0, 0), (0, -3, -4), 6)))  # y leads down
    assert (back_and_up["dolly"], back_and_up["truck"], back_and_up["pedestal"]) == pytest.approx((-0.8, 0, 0.6))
    still = statistics(poses_of(np.linspace((0, 0, 0), (0.05, 0, 0), 6)))  # dist_level 0
    assert "truck" not in still


def test_a_rotation_has_no_sign() -> None:
    """q and -q are one rotation: a turn through 180 degrees sums to its angle, whatever the quaternion's sign."""
    found = statistics(poses_of(np.zeros((37, 3)), turned(np.linspace(0, 360, 37))))
    assert found["rot_angle_rad"] == pytest.approx(2 * np.pi)


def test_anomaly_by_hand() -> None:
    """At rest, then a jump of 0.1 at pose 4: p̂ misses it; and the next, whose v₁ still holds the jump, misses too."""
    centers = np.zeros((8, 3))
    centers[4:, 0] = 0.1
    assert camera_path.anomalies(centers) == 2  # misses at 4, 5, 6: two pairs running
    slow = np.zeros((8, 3))
    slow[4:, 0] = 0.012  # guesses err by 0.012, 0.018 and 0.006
    assert camera_path.anomalies(slow) == 0
    smooth = np.zeros((12, 3))
    smooth[:, 0] = 0.002 * np.arange(12) ** 2  # constant acceleration of 0.004: each guess errs by 0.002
    assert camera_path.anomalies(smooth) == 0


def test_turns_by_hand() -> None:
    line = np.linspace((0, 0, 0), (3, 0, 0), 60)
    assert camera_path.turns_of(line) == 0
    corner = np.r_[np.linspace((0, 0, 0), (1, 0, 0), 30), np.linspace((1, 0, 0), (1, 0, 1), 31)[1:]]
    assert (
        camera_path.turns_of(corner) == 1
    )  # a right angle: the direction to the end leaves that of the start by up to 90 degrees
    assert camera_path.turns_of(np.zeros((10, 3))) == 0  # theirs crashes on a motionless camera
    assert camera_path.turns_of(np.zeros((2, 3))) == 0


def test_few_poses_are_no_anomaly() -> None:
    """Theirs counts fewer than four poses as anomalous; what cannot be measured is left out."""
    assert "pose_anomaly" not in statistics(poses_of(np.zeros((3, 3))))


def test_still_cameras_have_no_jerk() -> None:
    assert "pose_jerk" not in measure.scores(true("static"))
    assert "pose_jerk" not in measure.scores(true("pure_rotation"))
    even = camera_path.jerk(np.linspace((0, 0, 0), (1, 0, 0), 20))
    assert even == pytest.approx(0, abs=1e-9)
    back_and_forth = np.zeros((21, 3))
    back_and_forth[1::2, 0] = 1
    assert camera_path.jerk(back_and_forth) == pytest.approx(2)
