"""Every formula against numbers worked out by hand, and camera errors against a second implementation."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_align import horn

from shared import metrics


def test_depth_by_hand() -> None:
    found = metrics.depth(torch.tensor([2.0, 3.0, 4.0, 1.0]), torch.tensor([2.0, 2.0, 5.0, 4.0]))
    assert found["abs_rel"] == pytest.approx((0 + 0.5 + 0.2 + 0.75) / 4)
    assert found["sq_rel"] == pytest.approx((0 + 0.5 + 0.2 + 2.25) / 4)
    assert found["rmse"] == pytest.approx(((0 + 1 + 1 + 9) / 4) ** 0.5)
    logs = np.log([1, 1.5, 0.8, 0.25])
    assert found["log_rmse"] == pytest.approx((logs**2).mean() ** 0.5)
    assert (found["delta_1"], found["delta_2"], found["delta_3"]) == (0.25, 0.75, 0.75)


def test_depth_that_is_not_positive_counts_as_wrong() -> None:
    found = metrics.depth(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert found["delta_3"] == 0.5
    assert np.isfinite(found["log_rmse"])


def test_flow_by_hand() -> None:
    truth = torch.tensor([[0.0, 0.0], [100.0, 0.0], [10.0, 0.0], [0.0, 1.0]])
    predicted = truth + torch.tensor([[0.0, 0.5], [4.0, 0.0], [0.0, 3.5], [0.0, 0.0]])
    found = metrics.flow(predicted, truth)
    assert found["epe"] == pytest.approx((0.5 + 4 + 3.5 + 0) / 4)
    assert found["px1"] == 0.5
    assert found["fl"] == 0.25  # 4 px on 100 is within 5 %
    weights = 1 - np.arange(100) / 100
    within = np.array([sum(e <= i / 20 for e in (0.5, 4, 3.5, 0)) / 4 for i in range(1, 101)])
    assert found["wauc"] == pytest.approx(100 * (weights * within).sum() / weights.sum())


def test_scene_flow_by_hand() -> None:
    truth = torch.tensor([[1.0, 0, 0], [0.1, 0, 0], [10.0, 0, 0], [0, 0, 0.5]])
    predicted = truth + torch.tensor([[0.04, 0, 0], [0, 0.08, 0], [0, 0, 0.4], [0, 0.35, 0]])
    found = metrics.scene_flow(predicted, truth)
    assert found["epe3d"] == pytest.approx((0.04 + 0.08 + 0.4 + 0.35) / 4)
    assert found["acc3d_strict"] == 0.5  # the first by length, the third by share (4 %)
    assert found["acc3d_relaxed"] == 0.75
    assert found["outliers"] == 0.75  # 80 % of 0.1; 0.4 m; 0.35 m
    assert found["apd"] == pytest.approx((0 + 0.25 + 0.5 + 0.5) / 4)


def test_mask_by_hand() -> None:
    predicted = torch.tensor([True, True, False, False, True])
    truth = torch.tensor([True, False, True, False, True])
    assert metrics.mask(predicted, truth) == {
        "iou": 0.5,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
    }
    empty = torch.zeros(4, dtype=torch.bool)
    assert metrics.mask(empty, empty) == {"iou": 1.0, "precision": 1.0, "recall": 1.0}
    assert metrics.mask(~empty, empty) == {"iou": 0.0, "precision": 0.0, "recall": 1.0}


def test_points_by_hand() -> None:
    truth = torch.tensor([[0.0, 0, 2], [0, 0, 0]])
    found = metrics.points(truth + torch.tensor([[0, 0.2, 0], [0.005, 0, 0]]), truth)
    assert found == {"rel": pytest.approx((0.1 + 0.5) / 2), "delta": 0.5}


def trajectory(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, 3] = np.cumsum(rng.standard_normal((n, 3)) * 0.1 + (0.1, 0, 0), axis=0)
    poses[:, :3, :3] = Rotation.from_rotvec(np.cumsum(rng.standard_normal((n, 3)) * 0.02, axis=0)).as_matrix()
    return poses


def test_cameras_equal_a_second_implementation() -> None:
    """The evaluation of Sturm et al. (2012), written with Horn's rotation and scipy's angles."""
    truth, predicted = trajectory(12, 0), trajectory(12, 0)
    rng = np.random.default_rng(5)
    predicted[:, :3, 3] += 0.02 * rng.standard_normal((12, 3))
    predicted[:, :3, :3] = Rotation.from_rotvec(0.02 * rng.standard_normal((12, 3))).as_matrix() @ predicted[:, :3, :3]
    predicted[:, :3, 3] *= 3.0
    found = metrics.cameras(torch.from_numpy(predicted), torch.from_numpy(truth), scene_depth=5.0)
    x, y = predicted[:, :3, 3], truth[:, :3, 3]
    rotation, cx, cy = horn(x, y), x - x.mean(0), y - y.mean(0)
    scale = (cy * (cx @ rotation.T)).sum() / (cx**2).sum()
    ate = np.sqrt((((scale * cx @ rotation.T) - cy) ** 2).sum(1).mean())
    steps, turns = [], []
    for i in range(11):
        q = truth[i, :3, :3].T @ (truth[i + 1, :3, 3] - truth[i, :3, 3])
        p = scale * predicted[i, :3, :3].T @ (x[i + 1] - x[i])
        q_turn = truth[i, :3, :3].T @ truth[i + 1, :3, :3]
        p_turn = predicted[i, :3, :3].T @ predicted[i + 1, :3, :3]
        steps.append(((q_turn.T @ (p - q)) ** 2).sum())
        turns.append(np.degrees(Rotation.from_matrix(q_turn.T @ p_turn).magnitude()) ** 2)
    path = np.linalg.norm(np.diff(y, axis=0), axis=1).sum()
    assert found["ate"] == pytest.approx(ate)
    assert found["ate_percent"] == pytest.approx(100 * ate / path)
    assert found["rpe_translation"] == pytest.approx(np.sqrt(np.mean(steps)))
    assert found["rpe_rotation_deg"] == pytest.approx(np.sqrt(np.mean(turns)))
    assert found["near_still"] == 0


def test_cameras_equal_evo() -> None:
    """The field's tool, GPL-3 and therefore nothing that worldreel could need: an oracle where somebody put it."""
    theirs = pytest.importorskip("evo.core.metrics", reason="evo is not installed: pip install --no-deps evo")
    path = pytest.importorskip("evo.core.trajectory").PosePath3D
    truth, predicted = trajectory(20, 3), trajectory(20, 3)
    rng = np.random.default_rng(8)
    predicted[:, :3, 3] = 0.4 * predicted[:, :3, 3] + 0.01 * rng.standard_normal((20, 3))
    predicted[:, :3, :3] @= Rotation.from_rotvec(0.02 * rng.standard_normal((20, 3))).as_matrix()
    found = metrics.cameras(torch.from_numpy(predicted), torch.from_numpy(truth), scene_depth=5.0)
    reference, estimate = path(poses_se3=list(truth)), path(poses_se3=list(predicted))
    estimate.align(reference, correct_scale=True)
    relation, rmse = theirs.PoseRelation, theirs.StatisticsType.rmse
    wanted = {
        "ate": theirs.APE(relation.translation_part),
        "rpe_translation": theirs.RPE(relation.translation_part, 1, theirs.Unit.frames),
        "rpe_rotation_deg": theirs.RPE(relation.rotation_angle_deg, 1, theirs.Unit.frames),
    }
    for name, metric in wanted.items():
        metric.process_data((reference, estimate))
        assert found[name] == pytest.approx(metric.get_statistic(rmse), rel=1e-9)
    assert found["path"] == pytest.approx(reference.path_length)


def test_similar_cameras_have_no_error() -> None:
    truth = torch.from_numpy(trajectory(8, 2))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec((1, 2, 0.5)).as_matrix()
    moved = torch.from_numpy(turn) @ truth
    moved[:, :3, 3] = 7 * moved[:, :3, 3] + 3
    found = metrics.cameras(moved, truth, scene_depth=4.0)
    assert found["ate"] < 1e-12
    assert found["rpe_translation"] < 1e-12
    assert found["rpe_rotation_deg"] < 1e-6


def test_a_still_camera_is_flagged_and_not_scaled() -> None:
    truth, predicted = np.tile(np.eye(4), (2, 6, 1, 1))
    predicted[:, 0, 3] = (0.3, -0.3, 0.3, -0.3, 0.3, -0.3)
    found = metrics.cameras(torch.from_numpy(predicted), torch.from_numpy(truth), scene_depth=4.0)
    assert found["near_still"] == 1
    assert found["ate"] == pytest.approx(0.3)  # a Sim(3) would shrink it to 0
    assert "ate_percent" not in found
    without_depth = torch.from_numpy(truth)  # its scene is its path, which is none
    assert metrics.cameras(without_depth, without_depth, scene_depth=0.0)["near_still"] == 1


def test_angles_near_none_and_half_a_turn() -> None:
    angles = (1e-7, 0.1, 90.0, 179.9999)
    for angle in angles:
        rotation = Rotation.from_rotvec((0, np.radians(angle), 0)).as_matrix()
        assert float(metrics.angle_deg(torch.from_numpy(rotation))) == pytest.approx(angle, rel=1e-6)


def test_pairwise_auc() -> None:
    truth = torch.from_numpy(trajectory(5, 3))
    assert metrics.pairwise_auc(truth, truth) == 1.0
    turned = truth.clone()
    turned[:, :3, 3] = turned[0, :3, 3] - (turned[:, :3, 3] - turned[0, :3, 3])  # every direction reversed
    assert metrics.pairwise_auc(turned, truth) == 0.0
    tilt = torch.from_numpy(Rotation.from_rotvec((0, 0, np.radians(10.5))).as_matrix())
    one = truth[:2].clone()
    one[1, :3, :3] = one[1, :3, :3] @ tilt  # one pair, 10.5 degrees off: within 11..30
    assert metrics.pairwise_auc(one, truth[:2]) == pytest.approx(20 / 30)
