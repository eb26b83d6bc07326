"""Every score of an annotated clip, measured once; thresholds come later and read only these."""

from curate.checks import Checks
from shared.clip import AnnotatedClip


def scores(clip: AnnotatedClip) -> dict[str, float]:
    """What every check measures. A check that lacks a label measures nothing, so partly filled clips have fewer scores."""
    from curate.view import View

    view = View(clip)
    found: dict[str, float] = {}
    for _, check in Checks():
        found |= check.measure(view)
    return found
