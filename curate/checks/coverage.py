"""How much of the picture is labeled at all."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class Coverage(Knobs):
    """Labels must be there to be learned from."""

    depth_cover: Limit | None = Limit(fail_below=0.2, flag_below=0.5)
    """Share of pixels with valid depth."""
    uncertainty: Limit | None = None
    """Mean uncertainty of the forward flow, as its network tells."""
    uncertain: Limit | None = None
    """Share of pixels whose flow uncertainty is above 1."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        scores = {} if view.depth is None else {"depth_cover": float(view.depth[1].mean())}
        if view.clip.flow is None or view.clip.flow.uncertainty is None:
            return scores
        uncertainty = view.grid(view.clip.flow.uncertainty)
        return scores | {
            "uncertainty": float(uncertainty.mean()),
            "uncertain": float((uncertainty > 1).double().mean()),
        }
