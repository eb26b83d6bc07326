"""A score's distribution with its limits, as inline SVG, and what moving a limit would keep."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from curate import verdicts
from curate.check import OUTCOMES, Limit, limits
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
    for name, check in recipe.checks:
        for score, limit in limits(check).items() if check is not None else ():
            values = verdicts.column(rows, score)
            values = values[np.isfinite(values)]
            if len(values) and values.min() < values.max():  # what is the same everywhere needs no picture
                moves = []
                for gate, beyond in rejected.items():
                    if gate[0] == score and gate[2]:
                        others = (times - beyond == 0) & ~elsewhere
                        moves.append((f"{gate[1]} {gate[2]:g}", _moved(rows, gate, others)))
                svg = _svg(values, limit)
                found.append(Histogram(check=name, score=score, measured=len(values), svg=svg, moves=moves))
    return found


def _moved(rows: pa.Table, gate: tuple[str, str, float], others: np.ndarray) -> list[tuple[float, float]]:
    """(Bound, share kept) for bounds around the gate's, of the clips that no other gate rejects."""
    score, side, bound = gate
    return [(b, float((others & ~_beyond(rows, score, side, b)).mean())) for b in (bound * m for m in MOVES)]


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
    """Stacked bars colored by what the limits say; the outer half percent is gathered in the outermost bars."""
    bounds = limit.bounds()
    low, high = np.quantile(values, (0.005, 0.995))
    low, high = min([low, *(b for *_, b in bounds)]), max([high, *(b for *_, b in bounds)])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    said = _outcomes(values, limit)
    edges = np.linspace(low, high, BINS + 1)
    counts = np.stack([np.histogram(values[said == level].clip(low, high), bins=edges)[0] for level in range(3)])
    lines, labels = [], []
    for outcome, side, bound in bounds:
        at = (bound - low) / (high - low) * WIDTH
        anchor, shift = ("end", -3) if at > WIDTH / 2 else ("start", 3)
        row = 10 if outcome == "fail" else 21
        lines.append(f'<line class="{outcome}" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT - 14}"/>')
        label = f"{outcome} {side} {bound:g}"
        labels.append(f'<text class="{outcome}" x="{at + shift:.1f}" y="{row}" text-anchor="{anchor}">{label}</text>')
    span = high - low
    labels.append(f'<text x="0" y="{HEIGHT - 2}">{_rounded(low, span)}</text>')
    labels.append(f'<text x="{WIDTH}" y="{HEIGHT - 2}" text-anchor="end">{_rounded(high, span)}</text>')
    parts = [*_bars(counts, edges), *lines, *labels]  # labels last: their halo keeps them legible across lines
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _rounded(value: float, span: float) -> str:
    """Three digits; what is nothing beside the span, such as 4e-14, is 0."""
    return f"{0 if abs(value) < 1e-4 * span else value:.3g}"


def _outcomes(values: np.ndarray, limit: Limit) -> np.ndarray:
    """Each value's place in `OUTCOMES`."""
    said = np.zeros(len(values), np.int8)
    for outcome, side, bound in limit.bounds():
        beyond = values < bound if side == "below" else values > bound
        said = np.where(beyond, np.maximum(said, OUTCOMES.index(outcome)), said)
    return said


def _bars(counts: np.ndarray, edges: np.ndarray) -> list[str]:
    parts, width = [], WIDTH / BINS
    scale = (HEIGHT - 36) / max(counts.sum(0).max(), 1)
    for column, (begin, end) in enumerate(pairwise(edges)):
        foot = HEIGHT - 14.0
        for outcome, count in zip(OUTCOMES, counts[:, column].tolist()):
            if count:
                tall = max(count * scale, 1.0)
                foot -= tall
                parts.append(
                    f'<rect class="{outcome}" x="{column * width + 0.5:.1f}" y="{foot:.1f}" width="{width - 1:.1f}" '
                    f'height="{tall:.1f}"><title>{begin:.3g} to {end:.3g}: {count:,}</title></rect>'
                )
    return parts
