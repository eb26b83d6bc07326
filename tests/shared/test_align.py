"""Alignments against brute force, and against other methods for the same optimum."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shared import align


def lists(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    d = rng.uniform(1, 9, n)
    g = 2.0 * d + 5 + rng.laplace(0, 0.3, n)
    g[: n // 5] += rng.uniform(5, 50, n // 5)  # outliers
    return torch.from_numpy(d), torch.from_numpy(g)


def test_median_scale_by_hand() -> None:
    d, g = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 5.0, 100.0])
    assert align.median_scale(d, g) == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_lad_scale_is_the_best_of_all_ratios(seed: int) -> None:
    d, g = lists(41, seed)
    best = min((g / d).tolist(), key=lambda s: float((s * d - g).abs().sum()))
    assert align.lad_scale(d, g) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("seed", "n"), [(0, 25), (1, 26), (2, 31), (3, 40)])
def test_lad_scale_shift_is_the_best_line_through_two_points(seed: int, n: int) -> None:
    d, g = lists(n, seed)

    def cost(s: float, t: float) -> float:
        return float((s * d + t - g).abs().sum())

    lines = []
    for i, j in itertools.combinations(range(n), 2):
        s = float((g[i] - g[j]) / (d[i] - d[j]))
        lines.append((s, float(g[i] - s * d[i])))
    assert cost(*align.lad_scale_shift(d, g)) <= min(cost(*line) for line in lines) * (1 + 1e-8)


def test_lad_scale_shift_finds_a_known_line() -> None:
    d, _ = lists(1000)
    assert align.lad_scale_shift(d, 2 * d + 5) == pytest.approx((2, 5), rel=1e-6)
    assert align.lad_scale_shift(d, -0.3 * d + 5) == pytest.approx((-0.3, 5), rel=1e-6)
    assert align.lad_scale_shift(torch.full((9,), 4.0), torch.full((9,), 7.0)) == (1.0, 3.0)
    assert align.lad_scale_shift(d, torch.full_like(d, 7.0)) == pytest.approx((0, 7), abs=1e-6)


def test_least_squares_scale_solves_the_normal_equation() -> None:
    rng = np.random.default_rng(1)
    p, g = rng.standard_normal((2, 50, 3))
    solution, *_ = np.linalg.lstsq(p.reshape(-1, 1), g.reshape(-1), rcond=None)
    assert align.least_squares_scale(torch.from_numpy(p), torch.from_numpy(g)) == pytest.approx(solution[0])


def horn(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The best rotation by Horn's quaternion eigenproblem: another road to Umeyama's optimum."""
    s = (source - source.mean(0)).T @ (target - target.mean(0))
    n = np.empty((4, 4))
    n[0, 0] = np.trace(s)
    n[0, 1:] = n[1:, 0] = s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]
    n[1:, 1:] = s + s.T - np.trace(s) * np.eye(3)
    w, x, y, z = np.linalg.eigh(n)[1][:, -1]
    return Rotation.from_quat((x, y, z, w)).as_matrix()


@pytest.mark.parametrize("seed", range(4))
def test_sim3_and_se3_equal_horn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, 3))
    turn = Rotation.random(rng=rng).as_matrix()
    y = 2.5 * x @ turn.T + (1, 2, 3) + 0.3 * rng.standard_normal((20, 3))
    fit = align.sim3(torch.from_numpy(x), torch.from_numpy(y))
    rotation = horn(x, y)
    centered_x, centered_y = x - x.mean(0), y - y.mean(0)
    scale = (centered_y * (centered_x @ rotation.T)).sum() / (centered_x**2).sum()
    assert np.allclose(fit.rotation.numpy(), rotation, atol=1e-9)
    assert fit.scale == pytest.approx(scale)
    assert np.allclose(fit.translation.numpy(), y.mean(0) - scale * rotation @ x.mean(0))
    assert np.allclose(align.se3(torch.from_numpy(x), torch.from_numpy(y)).rotation.numpy(), rotation, atol=1e-9)


def test_sim3_never_mirrors() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((10, 3)))
    fit = align.sim3(x, x * torch.tensor([1.0, 1.0, -1.0]))
    assert float(torch.linalg.det(fit.rotation)) == pytest.approx(1)


def test_a_similarity_moves_poses_as_it_moves_points() -> None:
    turn = torch.from_numpy(Rotation.from_rotvec((0.1, 0.7, -0.3)).as_matrix())
    fit = align.Similarity(scale=2.0, rotation=turn, translation=torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(Rotation.from_rotvec((0.3, 0.2, 0.1)).as_matrix())
    pose[:3, 3] = torch.tensor([3.0, 1.0, 2.0])
    p_cam = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    by_points = fit.points(p_cam @ pose[:3, :3].T + pose[:3, 3])
    moved = fit.poses(pose[None])[0]
    assert torch.allclose(2 * p_cam @ moved[:3, :3].T + moved[:3, 3], by_points)


def test_nothing_to_align_is_refused() -> None:
    for solve in (align.median_scale, align.lad_scale, align.lad_scale_shift):
        with pytest.raises(ValueError, match="no value is valid in both"):
            solve(torch.zeros(0), torch.zeros(0))
