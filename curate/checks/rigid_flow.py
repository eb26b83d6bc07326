"""Still pixels move as depth and cameras say."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class RigidFlow(Knobs):
    """|F - F_rigid(D, K, T)| of still pixels, in px at 720 wide: depth, cameras and flow tell one story."""

    rigid_flow_px: Limit | None = Limit(flag_above=1.0, fail_above=2.0)
    """Median over still pixels whose flow agrees both ways."""
    rigid_flow_p90_px: Limit | None = Limit(flag_above=5.0)
    """90th percentile."""
    rigid_flow_worst_px: Limit | None = Limit(flag_above=3.0, fail_above=6.0)
    """Median of the worst pair of frames."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        from curate.view import median, present, quantile, worst

        landing = view.landing(1)
        if landing is None or 1 not in view.cycle:
            return {}
        cycle = view.cycle[1]
        error = view.to_reference * (landing.uv - view.uv - cycle.forward).norm(dim=-1)
        usable = landing.usable & cycle.agrees
        return present(
            {
                "rigid_flow_px": median(error[usable]),
                "rigid_flow_p90_px": quantile(error[usable], 0.9),
                "rigid_flow_worst_px": worst(error, usable),
            }
        )
