"""How clips are written: the knobs alone, so that recipes can be read without loading what writes."""

from typing import Annotated, Literal

from pydantic import Field

from shared.knobs import Knobs


class Store(Knobs):
    """How clips are written."""

    codec: Literal["compact", "plain"] = "compact"
    """compact: small, with the errors that shared/codecs.py states, which are finer for the depth and flow of data sets with truth.
    plain: exact, npy that any tool opens, ten times as large."""
    pointmaps: Literal["derived", "dense"] = "derived"
    """derived: points are stored only where a clip brings its own. dense: camera-frame points of every clip, for others."""
    rgb_crf: Annotated[int, Field(ge=0, le=51)] = 14
    """H.264 quality: 0 is exact, 14 hard to tell from exact. `plain` is always exact."""
