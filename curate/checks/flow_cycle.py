"""Flow there and back ends where it began."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class FlowCycle(Knobs):
    """Forward and backward flow agree on most of what stays in the image."""

    fb_ok: Limit | None = Limit(fail_below=0.5, flag_below=0.75)
    """Share of pixels with |F(x) + B(x + F)| < max(1, 0.01 |F| + 0.5) px at 720 wide."""
    fb_ok_worst: Limit | None = Limit(fail_below=0.25)
    """The same of the worst pair of frames: a frame out of order spoils two pairs."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        if 1 not in view.cycle:
            return {}
        cycle, scale = view.cycle[1], view.to_reference
        inside = cycle.error_px.isfinite()
        allowed = (0.01 * scale * cycle.forward.norm(dim=-1) + 0.5).clamp(min=1)
        good = inside & (scale * cycle.error_px < allowed)
        if not inside.any():
            return {}
        by_pair = [float(g.sum() / i.sum()) for g, i in zip(good, inside) if i.any()]
        return {"fb_ok": float(good.sum() / inside.sum()), "fb_ok_worst": min(by_pair)}
