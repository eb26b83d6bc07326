"""How far labels are from the truth: the field's formulas, each a function of aligned tensors to named numbers.

Alignment is the caller's (`shared.align`) except for cameras, whose error is defined after it. Shares are between 0 and 1,
lengths in the truth's unit, angles in degrees.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from shared import align

STILL = 1e-3
"""A camera whose path is shorter than this part of the scene's depth stands still: a similarity would fit noise."""


def depth(predicted: Float[Tensor, " N"], truth: Float[Tensor, " N"]) -> dict[str, float]:
    """AbsRel, SqRel, RMSE, log-RMSE (of at least 1e-5) and δ < 1.25, 1.25², 1.25³ over the given (valid) pixels."""
    predicted, truth = predicted.double(), truth.double()
    error = predicted - truth
    log_error = predicted.clamp(min=1e-5).log() - truth.log()
    ratio = torch.maximum(predicted / truth, truth / predicted)
    ratio = torch.where(predicted > 0, ratio, torch.inf)
    return {
        "abs_rel": _mean(error.abs() / truth),
        "sq_rel": _mean(error.square() / truth),
        "rmse": _mean(error.square()) ** 0.5,
        "log_rmse": _mean(log_error.square()) ** 0.5,
        **{f"delta_{k}": _share(ratio < 1.25**k) for k in (1, 2, 3)},
    }


def cameras(
    predicted: Float64[Tensor, "T 4 4"], truth: Float64[Tensor, "T 4 4"], *, scene_depth: float
) -> dict[str, float]:
    """ATE and relative pose errors over one frame, of world_from_cam, after aligning the centers.

    With estimate P, reference Q and E_i = (Q_i⁻¹ Q_{i+1})⁻¹ (P_i⁻¹ P_{i+1}): ATE = RMS |p_i - q_i|, `rpe_translation` and
    `rpe_rotation_deg` the RMS over i of E's translation and angle. P is moved by a Sim(3), or, where the reference's path is
    shorter than `STILL` of the scene's median depth, by an SE(3): then `near_still` is 1 and percentages of the path are left out.
    """
    centers, path = truth[:, :3, 3], path_length(truth)
    still = path <= STILL * scene_depth  # also of a truth without depth, whose scene is its path
    fit = align.se3 if still else align.sim3
    moved = fit(predicted[:, :3, 3], centers).poses(predicted)
    ate = _rms((moved[:, :3, 3] - centers).norm(dim=-1))
    residual = torch.linalg.inv(_steps(truth)) @ _steps(moved)
    found = {
        "ate": ate,
        "rpe_translation": _rms(residual[:, :3, 3].norm(dim=-1)),
        "rpe_rotation_deg": _rms(angle_deg(residual[:, :3, :3])),
        "path": path,
        "rotation_deg": float(angle_deg(_steps(truth)[:, :3, :3]).sum()),
        "near_still": float(still),
    }
    return found if still else {**found, "ate_percent": 100 * ate / path}


def pairwise_auc(predicted: Float64[Tensor, "T 4 4"], truth: Float64[Tensor, "T 4 4"], limit_deg: int = 30) -> float:
    """Area under the share of camera pairs whose rotation and translation direction are both within τ = 1..`limit_deg` degrees."""
    first, second = torch.triu_indices(len(truth), len(truth), offset=1)
    errors = []
    ours, theirs = (torch.linalg.inv(poses[first]) @ poses[second] for poses in (predicted, truth))
    errors.append(angle_deg(ours[:, :3, :3].transpose(1, 2) @ theirs[:, :3, :3]))
    cosine = torch.cosine_similarity(ours[:, :3, 3], theirs[:, :3, 3], dim=-1, eps=1e-12)
    errors.append(cosine.clamp(-1, 1).acos().rad2deg())
    worst = torch.stack(errors).amax(0)
    return sum(_share(worst <= tau) for tau in range(1, limit_deg + 1)) / limit_deg


def path_length(world_from_cam: Float64[Tensor, "T 4 4"]) -> float:
    """Σ |c_{t+1} - c_t| of the camera centers."""
    return float(world_from_cam[:, :3, 3].diff(dim=0).norm(dim=-1).sum())


def angle_deg(rotation: Float64[Tensor, "*batch 3 3"]) -> Float64[Tensor, "*batch"]:
    """The angle of a rotation, exact near 0 and 180 degrees (arctangent of sine and cosine)."""
    skew = rotation - rotation.transpose(-1, -2)
    sine = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1).norm(dim=-1) / 2
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2(sine, cosine).rad2deg()


def flow(predicted: Float[Tensor, "N 2"], truth: Float[Tensor, "N 2"]) -> dict[str, float]:
    """EPE, the shares with more than 1 px (`px1`), KITTI's Fl (> 3 px and > 5 %), and Spring's WAUC in percent."""
    error, length = (predicted - truth).norm(dim=-1).double(), truth.norm(dim=-1).double()
    steps = torch.arange(1, 101, dtype=torch.float64)
    weights = 1 - (steps - 1) / 100
    sorted_error = error.sort().values
    within = torch.searchsorted(sorted_error, steps / 20, right=True) / max(len(error), 1)
    return {
        "epe": _mean(error),
        "px1": _share(error > 1),
        "fl": _share((error > 3) & (error > 0.05 * length)),
        "wauc": float(100 * (weights * within).sum() / weights.sum()),
    }


def scene_flow(predicted: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"]) -> dict[str, float]:
    """EPE3D, Acc3DS (< 0.05 m or 5 %), Acc3DR (< 0.1 m or 10 %), outliers (> 0.3 m or 10 %), and APD at .03/.05/.1/.3 m.

    Of movers only: what stands still has no relative error, and would swamp the mean.
    """
    error, length = (predicted - truth).norm(dim=-1).double(), truth.norm(dim=-1).double()
    relative = error / length.clamp(min=1e-12)
    return {
        "epe3d": _mean(error),
        "acc3d_strict": _share((error < 0.05) | (relative < 0.05)),
        "acc3d_relaxed": _share((error < 0.1) | (relative < 0.1)),
        "outliers": _share((error > 0.3) | (relative > 0.1)),
        "apd": sum(_share(error <= limit) for limit in (0.03, 0.05, 0.1, 0.3)) / 4,
    }


def mask(predicted: Bool[Tensor, "*any"], truth: Bool[Tensor, "*any"]) -> dict[str, float]:
    """IoU, precision and recall of a mask; 1 where neither holds anything."""
    both, either = int((predicted & truth).sum()), int((predicted | truth).sum())
    found, there = int(predicted.sum()), int(truth.sum())
    return {
        "iou": both / either if either else 1.0,
        "precision": both / found if found else float(not there),
        "recall": both / there if there else 1.0,
    }


def points(predicted: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"]) -> dict[str, float]:
    """Relative point error mean |p - g| / max(|g|, 0.01), and the share below 0.25 of it (GeometryCrafter's)."""
    relative = (predicted - truth).norm(dim=-1).double() / truth.norm(dim=-1).double().clamp(min=0.01)
    return {"rel": _mean(relative), "delta": _share(relative < 0.25)}


def _steps(world_from_cam: Float64[Tensor, "T 4 4"]) -> Float64[Tensor, "P 4 4"]:
    """this_from_next of neighboring frames."""
    return torch.linalg.inv(world_from_cam[:-1]) @ world_from_cam[1:]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _rms(values: Tensor) -> float:
    return _mean(values.square()) ** 0.5


def _share(where: Tensor) -> float:
    return _mean(where.double())
