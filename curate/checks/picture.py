"""The cheap scores of screening, and those that models or an input column gave: judged here once more, so that they can move."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class Picture(Knobs):
    """What the pictures are like. Nothing is measured here: the scores come with the clip."""

    luminance: Limit | None = Limit(flag_below=20.0, flag_above=200.0)
    """Mean gray level."""
    contrast: Limit | None = None
    """Standard deviation of gray."""
    blur: Limit | None = None
    """Variance of the Laplacian: low is blurred."""
    motion: Limit | None = None
    """Mean flow over half a second, px at 640 x 360."""
    motion2: Limit | None = None
    """libvmaf's motion2 at 640 x 360."""
    frozen: Limit | None = Limit(flag_above=0.5)
    """Share of steps that change nothing."""
    letterbox: Limit | None = Limit(flag_above=0.1)
    """Share of the picture under black borders."""
    cut: Limit | None = Limit(flag_above=5.0)
    """Largest change over the changes around it: a missed cut."""
    text_area: Limit | None = None
    """Share of the picture under text; a column of the list of videos, like the two below: `annotate` has no model for them."""
    aesthetic: Limit | None = None
    """SpatialVID keeps what CLIP ViT-L/14 with the LAION head calls at least 4.0."""
    clip_score: Limit | None = None
    bitrate: Limit | None = None
    upscale: Limit | None = Limit(flag_above=2.0)
    """How much the clip was enlarged."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        return {}
