"""One plausible focal length."""

from typing import TYPE_CHECKING

import numpy as np

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class Focal(Knobs):
    """Cameras see between 14° and 100°, and do not zoom."""

    focal_drift: Limit | None = Limit(flag_above=0.1, fail_above=0.3)
    """(max - min) / median over the frames."""
    fov_deg: Limit | None = Limit(fail_below=14.0, flag_below=25.0, flag_above=100.0, fail_above=130.0)
    """Field of view along the longer side."""
    focal_rel_ci: Limit | None = Limit(flag_above=0.2)
    """Relative uncertainty of a self-calibrated focal length."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        cameras = view.clip.cameras
        if cameras is None:
            return {}
        focal = cameras.intrinsics[:, :2].mean(axis=1)
        side = max(view.height, view.width)
        scores = {
            "focal_drift": float((focal.max() - focal.min()) / np.median(focal)),
            "fov_deg": float(np.degrees(2 * np.arctan(side / 2 / np.median(focal)))),
        }
        return scores if cameras.focal_rel_ci is None else {**scores, "focal_rel_ci": cameras.focal_rel_ci}
