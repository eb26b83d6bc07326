"""One dial for all limits that say how far labels are to be trusted: what the paper's confidence-threshold sweep turns."""

from curate.check import Limit
from curate.checks import Checks

CONFIDENCE = ("flow_cycle", "rigid_flow", "depth_reprojection", "depth_edges", "scale_drift", "sampson")
"""Checks whose every limit is of an error or of a share that is right. The others are of content."""


def tightened(checks: Checks, times: float) -> Checks:
    """The checks with `times` as strict limits in `CONFIDENCE`: 2 bears half the error, 0.5 twice; 0 switches them off.

    Limits above are of errors and are divided; limits below are of shares that are right, so what they lack to 1 is divided.
    """
    changed = {}
    for name in CONFIDENCE:
        check = getattr(checks, name)
        if check is None or times == 0:
            changed[name] = None
            continue
        limits = {score: _tightened(limit, times) for score, limit in check if isinstance(limit, Limit)}
        changed[name] = check.changed(**limits)
    return checks.model_copy(update=changed)


def _tightened(limit: Limit, times: float) -> Limit:
    def bound(name: str, value: float) -> float:
        return value / times if name.endswith("above") else 1 - (1 - value) / times

    return Limit(**{name: None if value is None else bound(name, value) for name, value in limit})
