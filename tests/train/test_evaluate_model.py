"""The formulas on cases one can work out, and the failures on failures made up."""

from dataclasses import replace

import examples
import numpy as np
import pytest
import scene
import torch

from shared.clip import AnnotatedClip
from train import evaluate, pose, sample
from train.sample import Predicted


def _uniform_flow(pairs: int, speed: float, height: int = 256, width: int = 256) -> np.ndarray:
    flow = np.zeros((pairs, height, width, 2), np.float32)
    flow[..., 0] = speed
    return flow


def _features(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_vbench_looks_at_eight_frames_a_second():
    assert evaluate.sampled(49, 8.0) == list(range(49))
    assert evaluate.sampled(49, 16.0) == list(range(0, 49, 2))
    assert len(evaluate.sampled(49, 16.0)) == 25
    assert evaluate.sampled(5, 3.0) == [0, 1, 2, 3, 4]


def test_a_video_is_dynamic_above_the_published_speed_in_enough_pairs():
    assert not evaluate.is_dynamic(_uniform_flow(48, 6.0))
    assert evaluate.is_dynamic(_uniform_flow(48, 6.01))
    flow = _uniform_flow(48, 0.0)
    flow[:11, ..., 0] = 7
    assert not evaluate.is_dynamic(flow)  # of 49 frames, 12 pairs must move
    flow[11, ..., 0] = 7
    assert evaluate.is_dynamic(flow)


def test_at_any_rate_the_same_motion_is_as_dynamic():
    slow = _uniform_flow(48, 4.0, 32, 32)
    assert np.array_equal(evaluate.between_sampled(slow, slow, 8.0), slow)
    twice = evaluate.between_sampled(slow, slow, 16.0)
    assert twice.shape == (24, 32, 32, 2)
    assert np.allclose(twice[..., 0], 8)
    assert evaluate.between_sampled(slow, slow, 24.0).shape == (16, 32, 32, 2)
    clip = scene.tiny("many_moving")
    followed = evaluate.between_sampled(clip.flow.forward, clip.flow.forward, 32.0)
    assert np.median(np.abs(followed - clip.key_flow.forward)) < 0.02


def test_five_percent_of_the_pixels_are_enough():
    flow = _uniform_flow(4, 0.0)
    flow[:, :13, :, 0] = 7  # 13 of 256 rows: 5.08 %
    assert evaluate.is_dynamic(flow)
    flow[:, 6:] = 0
    assert not evaluate.is_dynamic(flow)


def test_a_gliding_camera_is_dynamic_but_moves_no_object():
    clip = scene.clip("dolly", frames=9, height=48, width=64, focal=60.0)
    left, _ = evaluate.object_flow(clip)
    known = ~clip.motion.dynamic[:-1]
    assert np.abs(left[known]).max() < 0.01
    moving = scene.tiny("many_moving")
    left, _ = evaluate.object_flow(moving)
    assert np.linalg.norm(left[moving.motion.dynamic[:-1]], axis=-1).mean() > 0.05


def test_consistency_and_faithfulness_by_hand():
    features = _features((1, 0), (1, 0), (0, 2), (-1, 0))
    assert evaluate.consistency(features) == pytest.approx(((1 + 1) + (0 + 0) + (0 + 0)) / 2 / 3)
    image = _features((3, 0))
    assert evaluate.faithfulness(image, features) == pytest.approx(0.4 * 1 + 0.3 * (1 + 0 + 0) / 3 + 0.3 * 0)
    turned = _features((-1, 1), (1, 1), (-1, -1))  # those below zero count as zero
    assert evaluate.faithfulness(image, turned) == pytest.approx(0.4 * 0.5**0.5)


def test_smooth_motion_scores_one():
    rgb = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 4, 3), 10, np.uint8)

    def _halfway(frames: np.ndarray) -> np.ndarray:
        return ((frames[:-1].astype(int) + frames[1:]) // 2).astype(np.uint8)

    assert evaluate.smoothness(rgb, _halfway) == 1
    rgb[3] += 51
    assert evaluate.smoothness(rgb, _halfway) == pytest.approx(1 - 51 / 255 / 4)
    assert evaluate.steadiness(rgb[:2]) == pytest.approx(1 - 10 / 255)


def test_frechet_of_two_normals():
    rng = torch.Generator().manual_seed(0)
    draw = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    assert evaluate.frechet(draw, draw) == pytest.approx(0, abs=1e-9)
    scale = torch.tensor([2.0, 1.0, 0.5]).double()
    expected = 3 + float(((scale - 1).square() * draw.var(0)).sum())
    assert evaluate.frechet(draw, draw * scale + (1 - draw.mean(0) * (scale - 1))) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="at least two"):
        evaluate.frechet(draw[:1], draw)


def test_frechet_of_clips_pools_their_rows():
    clips = [np.random.default_rng(seed).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8) for seed in range(4)]

    def _colors(rgb: np.ndarray) -> torch.Tensor:
        return torch.tensor(rgb).double().mean((1, 2))

    rows = torch.cat([_colors(rgb) for rgb in clips])
    assert evaluate.frechet_of(_colors, clips, clips[:2]) == pytest.approx(evaluate.frechet(rows, rows[:10]))


def test_what_is_decoded_is_measured_apart_where_things_move():
    batch = examples.batch("many_moving")
    truth = examples.truth(batch)
    found = evaluate.prediction(truth, batch)
    assert max(value for name, value in found.items() if name not in ("d1.25 scaled", "mask IoU")) < 1e-2
    assert found["mask IoU"] == 1
    leaking = examples.changed(truth, scene_flow=truth.scene_flow + 0.1)
    raw, gated = (evaluate.prediction(one, batch) for one in (leaking, evaluate.gated(leaking)))
    assert raw["scene flow static"] == pytest.approx(0.1 * 3**0.5, rel=1e-4)
    assert gated["scene flow static"] == 0
    assert gated["scene flow moving"] == pytest.approx(raw["scene flow moving"])


def test_geometry_against_itself_is_perfect_whatever_its_unit():
    clip = scene.tiny("orbit")
    shrunk = replace(clip.depth, z=clip.depth.z * np.float32(0.1), metric=False)
    poses = clip.cameras.world_from_cam.copy()
    poses[:, :3, 3] *= 0.1
    made = clip.with_(depth=shrunk, cameras=replace(clip.cameras, world_from_cam=poses, metric=False))
    found = evaluate.geometry(made, clip)
    assert found["log_rmse"] < 1e-5
    assert found["delta_1.25"] == 1
    assert found["ate"] < 1e-6
    assert found["rre_deg"] < 1e-4
    assert found["length"] > 0.01


def test_geometry_notices_wrong_depth_and_wrong_cameras():
    clip = scene.tiny("orbit")
    bent = clip.depth.z * np.linspace(1, 2, 64, dtype=np.float32)
    made = clip.with_(
        depth=replace(clip.depth, z=bent),
        cameras=replace(clip.cameras, world_from_cam=np.tile(np.eye(4), (9, 1, 1))),
    )
    found = evaluate.geometry(made, clip)
    assert found["log_rmse"] > 0.1
    assert found["ate"] > 0.001
    assert found["rre_deg"] > 0.05


@pytest.mark.parametrize("kind", ["orbit", "many_moving", "handheld", "dolly"])
def test_truth_shows_no_failure(kind):
    found = evaluate.signatures(scene.tiny(kind))
    assert not found.geometric_inconsistency
    assert not found.camera_scene_confusion
    assert not found.static_collapse
    assert found.measures["flow_gap"] < 1e-4


def _frozen(clip: AnnotatedClip) -> AnnotatedClip:
    still, nothing = np.zeros_like(clip.flow.forward), np.zeros_like(clip.key_flow.forward)
    return clip.with_(
        rgb=np.repeat(clip.rgb[:1], 9, 0),
        depth=replace(clip.depth, z=np.repeat(clip.depth.z[:1], 9, 0)),
        flow=replace(clip.flow, forward=still, backward=still),
        key_flow=replace(clip.key_flow, forward=nothing, backward=nothing),
        cameras=replace(clip.cameras, world_from_cam=np.tile(np.eye(4), (9, 1, 1))),
        motion=replace(
            clip.motion,
            dynamic=np.zeros_like(clip.motion.dynamic),
            key_scene_flow=np.zeros_like(clip.motion.key_scene_flow),
        ),
    )


def test_a_frozen_clip_is_a_static_collapse():
    found = evaluate.signatures(_frozen(scene.tiny("orbit")))
    assert found.static_collapse
    assert not found.geometric_inconsistency


def test_depth_that_wobbles_is_inconsistent():
    clip = scene.tiny("orbit")
    wobble = np.where(np.arange(9) % 8 < 4, 1.0, 1.15).astype(np.float32)[:, None, None]
    found = evaluate.signatures(clip.with_(depth=replace(clip.depth, z=clip.depth.z * wobble)))
    assert found.geometric_inconsistency
    assert not found.static_collapse


def test_scene_flow_against_the_flow_is_inconsistent():
    clip = scene.tiny("many_moving")
    wrong = clip.motion.key_scene_flow + np.float32(0.3)
    found = evaluate.signatures(clip.with_(motion=replace(clip.motion, key_scene_flow=wrong)))
    assert found.geometric_inconsistency


def test_camera_motion_told_as_scene_motion_is_confusion():
    clip = scene.tiny("many_moving")
    drift = clip.motion.key_scene_flow + np.where(clip.motion.dynamic[:-1:4, ..., None], 0, 0.1).astype(np.float32)
    found = evaluate.signatures(clip.with_(motion=replace(clip.motion, key_scene_flow=drift)))
    assert found.camera_scene_confusion


def test_a_world_that_as_good_as_stands_still_confuses_nothing():
    tremble = np.float32(1e-4) * np.ones_like(scene.tiny("orbit").motion.key_scene_flow)
    clip = _frozen(scene.tiny("orbit"))
    found = evaluate.signatures(clip.with_(motion=replace(clip.motion, key_scene_flow=tremble)))
    assert not found.camera_scene_confusion
    assert evaluate.signatures(
        clip.with_(motion=replace(clip.motion, key_scene_flow=1000 * tremble))
    ).camera_scene_confusion


def test_tables_have_the_papers_layout():
    rows = {"ours": {"d.d.": 1.0, "m.s.": 0.9871}, "base": {"m.s.": 0.5}}
    assert (
        evaluate.table(rows, ["d.d.", "m.s."])
        == "|method|d.d.|m.s.|\n|---|---|---|\n|ours|1.000|0.987|\n|base|-|0.500|"
    )
    assert evaluate.averaged([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}


def test_video_quality_uses_what_it_is_given():
    clip = scene.tiny("orbit")

    def _colors(rgb: np.ndarray) -> torch.Tensor:
        return torch.tensor(rgb).float().flatten(1)

    seeing = dict.fromkeys(("subject", "background", "image_background"), _colors)
    found = evaluate.video_quality(clip, **seeing, interpolate=lambda rgb: rgb[:-1])
    assert set(found) == {"d.d.", "object d.d.", "m.s.", "i2v-s", "s.c.", "i2v-b", "b.c."}
    assert 0.5 < found["s.c."] <= 1
    assert set(evaluate.video_quality(clip)) == {"d.d.", "object d.d."}
    assert set(evaluate.video_quality(clip, background=_colors)) == {"d.d.", "object d.d.", "b.c."}


def test_without_depth_object_motion_is_unknown_not_zero():
    clip = scene.tiny("many_moving")
    assert evaluate.is_object_dynamic(clip) is not None
    blind = clip.with_(depth=replace(clip.depth, z=0 * clip.depth.z, valid=np.zeros_like(clip.depth.valid)))
    assert evaluate.is_object_dynamic(blind) is None
    assert set(evaluate.video_quality(blind)) == {"d.d."}
    still = replace(clip.cameras, degenerate="static_camera")
    with pytest.raises(ValueError, match="tell no depth, their cameras are flagged static_camera"):
        evaluate.geometry(clip, blind.with_(cameras=still))


def test_errors_of_the_truth_are_none_and_what_is_not_labeled_is_left_out():
    clip = scene.clip("orbit", frames=9, height=48, width=64, focal=60.0)
    batch = sample.collate([sample.from_clip(clip, 9, 48, 64)])
    perfect = Predicted(
        depth=3 * batch.key_depth.clamp_min(1e-3),
        points=batch.points,
        camera=pose.encode(batch.world_from_cam, batch.intrinsics, 48, 64),
        dynamic_logit=batch.dynamic.float() - 0.5,
        scene_flow=batch.scene_flow,
    )
    found = evaluate.prediction(perfect, batch)
    assert found.pop("mask IoU") == found.pop("d1.25 scaled") == 1
    assert found.pop("depth log-RMSE") == pytest.approx(np.log(3), rel=1e-3)
    assert list(found.values()) == pytest.approx([0] * len(found), abs=2e-3)
    assert {"camera position", "scene flow moving"} <= found.keys()
    bare = sample.collate([sample.from_clip(clip.with_(cameras=None, motion=None), 9, 48, 64)])
    names = evaluate.prediction(perfect, bare).keys()
    assert {name.split()[0] for name in names} == {"depth", "d1.25"}
