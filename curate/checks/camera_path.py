"""Cameras move as cameras do; and SpatialVID's statistics of how they move.

SpatialVID takes statistics of the cam-from-world translation, which a turning camera changes while it stands still. Here they are
of camera centers, q and -q are one rotation, a motionless camera has no turns, and what is forward is told by the camera that
moves, not by the first. Their lengths are in units in which the near surfaces (the 98th percentile of inverse depth) are half a
unit away; so are ours. Each of their errors and the test of ours: `docs/spatialvid.md`.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View

Centers = Float64[np.ndarray, "N 3"]

ANOMALY = 0.03
"""SpatialVID's limit of an extrapolation's error, in its units."""
DISTANCES = (0.08, 0.28, 0.92, 2.41)
"""Paths from which a clip is of `dist_level` 1 (slight), 2, 3, 4."""
STILL = 3e-3
"""A path of less than this part of the near depth a frame is noise."""


class CameraPath(Knobs):
    """No jumps, no jerks, no turns that no hand makes."""

    pose_anomaly: Limit | None = Limit(flag_above=0, fail_above=3)
    """How often two extrapolations running, at 5 Hz, miss the next center by 6 % of the near depth."""
    pose_jerk: Limit | None = Limit(flag_above=1.2, fail_above=2.2)
    """95th percentile of acceleration over median speed, per frame; not of still cameras."""
    pose_turn_deg: Limit | None = Limit(fail_above=10.0)
    """The largest rotation between two frames."""
    parallax: Limit | None = None
    """Path over median depth."""
    move_dist: Limit | None = None
    """SpatialVID's path length at 5 Hz, in its units."""
    rot_angle_rad: Limit | None = None
    """Sum of rotation angles at 5 Hz."""
    traj_turns: Limit | None = None
    """Turns of at least 0.45 rad in the path."""
    dolly: Limit | None = None
    """Share of the path that leads forward as the camera then looks: 1 forward, -1 back."""
    truck: Limit | None = None
    """The same to its right."""
    pedestal: Limit | None = None
    """The same to its top."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        if view.clip.cameras is None or view.num_frames < 2:
            return {}
        poses = view.clip.cameras.world_from_cam
        turns = angles(poses[:, :3, :3])
        scores = {"pose_turn_deg": float(np.degrees(turns.max()))}
        slow = poses[:: max(1, int(0.2 * view.clip.fps))]
        scores |= {"rot_angle_rad": float(angles(slow[:, :3, :3]).sum()), "traj_turns": float(turns_of(slow[:, :3, 3]))}
        if view.near_depth is None or view.median_depth is None:
            return scores
        centers, slow_centers = poses[:, :3, 3], slow[:, :3, 3] / (2 * view.near_depth)
        distance = path(slow_centers)
        scores |= {
            "parallax": path(centers) / view.median_depth,
            "move_dist": distance,
            "dist_level": float(sum(distance >= least for least in DISTANCES)),
        }
        if distance >= DISTANCES[0]:
            right, down, forward = steps(slow).sum(0) / path(slow[:, :3, 3])
            scores |= {"dolly": float(forward), "truck": float(right), "pedestal": float(-down)}
        if len(slow) >= 4:
            scores["pose_anomaly"] = float(anomalies(slow_centers))
        if path(centers) > STILL * view.near_depth * len(centers) and len(centers) >= 3:
            scores["pose_jerk"] = jerk(centers)
        return scores


def path(centers: Centers) -> float:
    """Σ |p[t+1] - p[t]|."""
    return float(np.linalg.norm(np.diff(centers, axis=0), axis=1).sum())


def steps(world_from_cam: Float64[np.ndarray, "N 4 4"]) -> Float64[np.ndarray, "P 3"]:
    """Each step of the centers as the camera at its start sees it: right, down, forward."""
    return np.einsum("tji,tj->ti", world_from_cam[:-1, :3, :3], np.diff(world_from_cam[:, :3, 3], axis=0))


def angles(rotations: Float64[np.ndarray, "N 3 3"]) -> Float64[np.ndarray, " P"]:
    """Angles between neighbors, radians; 2 arccos |w| of the quaternion between them, exact near 0."""
    between = rotations[:-1].transpose(0, 2, 1) @ rotations[1:]
    skew = between - between.transpose(0, 2, 1)
    sine = np.linalg.norm(np.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0])), axis=0) / 2
    return np.arctan2(sine, (np.trace(between, axis1=1, axis2=2) - 1) / 2)


def anomalies(centers: Centers) -> int:
    """How often SpatialVID's extrapolation misses twice running: p̂ = p[t+2] + v₁ + ½ (v₁ - v₂), v₁ and v₂ the last two steps."""
    step = np.diff(centers, axis=0)
    newest, older = step[1:-1], step[:-2]
    guess = centers[2:-1] + newest + 0.5 * (newest - older)
    missed = np.linalg.norm(guess - centers[3:], axis=1) > ANOMALY
    return int((missed[1:] & missed[:-1]).sum())


def jerk(centers: Centers) -> float:
    """95th percentile of |acceleration| over median |velocity|, per frame."""
    velocity = np.diff(centers, axis=0)
    speed = float(np.median(np.linalg.norm(velocity, axis=1)))
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=1)
    return float(np.percentile(change, 95) / max(speed, 1e-12))


def turns_of(centers: Centers) -> int:
    """Peaks of the angle between where the camera came from and where it goes: smoothed (σ 5), ≥ 0.45 rad, 5 poses apart.

    The largest angle counts wherever it is. A motionless camera has no turns.
    """
    came, goes = centers[1:-1] - centers[0], centers[-1] - centers[1:-1]
    lengths = np.linalg.norm(came, axis=1) * np.linalg.norm(goes, axis=1)
    if not len(came) or lengths.max() <= 0:
        return 0
    cosine = np.divide((came * goes).sum(1), lengths, out=np.ones_like(lengths), where=lengths > 0)
    theta = _smooth(np.arccos(cosine.clip(-1, 1)), sigma=5.0)
    is_peak = np.r_[False, (theta[1:-1] > theta[:-2]) & (theta[1:-1] >= theta[2:]), False][: len(theta)]
    is_peak[theta.argmax()] = True
    peaks = np.flatnonzero(is_peak & (theta >= 0.45))
    taken: list[int] = []
    for peak in peaks[np.argsort(-theta[peaks], kind="stable")]:  # the highest first, none within 5 of one taken
        if all(abs(int(peak) - other) >= 5 for other in taken):
            taken.append(int(peak))
    return len(taken)


def _smooth(values: Float64[np.ndarray, " N"], sigma: float) -> Float64[np.ndarray, " N"]:
    """Gaussian, reflected at the ends, cut at 4 σ."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(values, reach, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
