"""A score's distribution with its limits, as inline SVG, and what moving a limit would keep."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curate import verdicts
from curate.check import Limit, limits
from curate.recipe import CurateRecipe
from curate.verdicts import FAIL

WIDTH, HEIGHT, BINS = 420, 120, 42
MOVES = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Of a bound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """One score."""

    check: str
    score: str
    measured: int
    """Clips of the sample that have it."""
    svg: str
    moves: list[tuple[str, list[tuple[float, float]]]]
    """For each bound that rejects (`above 2`): bounds, and the share of the sample that would be kept with them."""


def histograms(rows: pa.Table, recipe: CurateRecipe) -> list[Histogram]:
    """Of every score that a check may judge and that some clip has."""
    rejected = {gate: _beyond(rows, *gate) for gate in _rejecting(recipe)}
    times = np.sum(list(rejected.values()), axis=0) if rejected else np.zeros(len(rows), int)
    elsewhere = (rows["level"].to_numpy() == FAIL) & (times == 0)  # by a licence, or another source's limits
    found = []
    for check_name, check in recipe.checks:
        for score, limit in limits(check).items() if check is not None else ():
            values = verdicts.column(rows, score)
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            moves = []
            for outcome, side, bound in limit.bounds():
                if outcome == "fail" and bound:
                    others = (times - rejected[score, side, bound] == 0) & ~elsewhere
                    shares = [
                        (b, float((others & ~_beyond(rows, score, side, b)).mean())) for b in bound * np.array(MOVES)
                    ]
                    moves.append((f"{side} {bound:g}", shares))
            found.append(
                Histogram(check=check_name, score=score, measured=len(values), svg=_svg(values, limit), moves=moves)
            )
    return found


def _rejecting(recipe: CurateRecipe) -> list[tuple[str, str, float]]:
    return [
        (score, side, bound)
        for _, check in recipe.checks
        if check is not None
        for score, limit in limits(check).items()
        for outcome, side, bound in limit.bounds()
        if outcome == "fail"
    ]


def _beyond(rows: pa.Table, score: str, side: str, bound: float) -> np.ndarray:
    values = verdicts.column(rows, score)
    return values < bound if side == "below" else values > bound


def _svg(values: np.ndarray, limit: Limit) -> str:
    """Bars colored by what the limits say of them; the outer half percent is gathered in the outermost bars."""
    bounds = limit.bounds()
    low, high = np.quantile(values, (0.005, 0.995))
    low, high = min([low, *(b for *_, b in bounds)]), max([high, *(b for *_, b in bounds)])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values.clip(low, high), bins=BINS, range=(low, high))
    scale = (HEIGHT - 22) / max(counts.max(), 1)

    def x(value: float) -> float:
        return (value - low) / (high - low) * WIDTH

    parts = []
    for count, begin, end in zip(counts, edges, edges[1:]):
        middle, tall = (begin + end) / 2, count * scale
        kind = next((o for o, side, b in bounds if (middle < b if side == "below" else middle > b)), "pass")
        parts.append(
            f'<rect class="{kind}" x="{x(begin) + 0.5:.1f}" y="{HEIGHT - 14 - tall:.1f}" '
            f'width="{WIDTH / BINS - 1:.1f}" height="{max(tall, 0.6 if count else 0):.1f}"><title>{begin:.3g} to {end:.3g}: '
            f"{count} clips</title></rect>"
        )
    for outcome, side, bound in bounds:
        at = x(bound)
        anchor = "end" if at > WIDTH / 2 else "start"
        shift = -3 if anchor == "end" else 3
        row = 8 if outcome == "fail" else 18
        parts.append(f'<line class="{outcome}" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT - 14}"/>')
        parts.append(
            f'<text class="{outcome}" x="{at + shift:.1f}" y="{row}" text-anchor="{anchor}">{outcome} {side} {bound:g}</text>'
        )
    parts.append(f'<text x="0" y="{HEIGHT - 2}">{low:.3g}</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT - 2}" text-anchor="end">{high:.3g}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
