"""How good the verdicts are on errors that annotators really make: labels with known truth, judged by their scores alone.

A clip is *usable* if its labels' errors are within `Usable`. Of the verdicts, **precision** is the share of the kept that are
usable and **recall** the share of the usable that are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import Field

from curate import verdicts
from curate.check import Side, limits
from curate.recipe import CurateRecipe
from curate.verdicts import FAIL, Judged
from shared.knobs import Knobs

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

KINDS: dict[str, tuple[str, Side]] = {
    "depth": ("static_depth.abs_rel", "above"),
    "cover": ("static_depth.coverage", "below"),
    "position": ("cameras.ate_percent", "above"),
    "turn": ("cameras.rpe_rotation_deg", "above"),
    "movers": ("dynamic.iou", "below"),
    "flow": ("flow.fl", "above"),
}
"""Knob of `Usable` -> the number of `worldreel evaluate labels` that it limits, and on which side it is bad."""
LEAST_CLIPS = 8
"""A rank correlation of fewer says nothing."""


class Usable(Knobs):
    """How wrong labels may be that are still worth training on."""

    depth: Positive = 0.1
    """Mean relative error of still pixels, scale aligned."""
    cover: Share = 0.2
    """Share of still pixels that have a depth."""
    position: Positive = 2.0
    """Error of the camera's positions after Sim(3), percent of the path; of still cameras there is none."""
    turn: Positive = 0.25
    """Error of the rotation from frame to frame, degrees."""
    movers: Share = 0.5
    """IoU of the moving pixels."""
    flow: Share = 0.25
    """Share of pixels whose flow is off by 3 px and 5 %."""

    def beyond(self, errors: Sequence[Mapping[str, float]]) -> dict[str, Bool[np.ndarray, " N"]]:
        """By kind, which clips are too wrong; one without the number is not."""
        found = {}
        for kind, (name, side) in KINDS.items():
            values, bound = _column(errors, name), getattr(self, kind)
            found[kind] = values < bound if side == "below" else values > bound
        return found


@dataclass(frozen=True, kw_only=True)
class GateOnErrors:
    """What one score says of real errors."""

    score: str
    bound: str
    rejects: int
    rejects_unusable: int
    alone: int
    """Usable clips that no other gate rejects."""
    usable_within: float | None
    """The bound that 95 % of the usable clips keep."""
    ranks: Mapping[str, float]
    """Kind of error -> Spearman's rank correlation with it; positive: a worse score goes with a larger error."""


def page(judged: Judged, errors: Sequence[Mapping[str, float]], recipe: CurateRecipe, usable: Usable, said: str) -> str:
    """The tables, as Markdown. `errors` are those of the judged clips, in their order; `said` tells where they are from."""
    beyond = usable.beyond(errors)
    bad = np.any(list(beyond.values()), axis=0)
    dropped = judged.levels() == FAIL
    kept, good, both = int((~dropped).sum()), int((~bad).sum()), int((~dropped & ~bad).sum())
    kinds = "\n".join(
        f"| {kind} | {KINDS[kind][0]} {KINDS[kind][1]} {getattr(usable, kind):g} | {hit.sum()} | {(hit & dropped).sum()} |"
        for kind, hit in beyond.items()
    )
    rows = "\n".join(
        f"| {g.score} | {g.bound} | {g.rejects} | {g.rejects_unusable} | {g.alone} | {_number(g.usable_within)} | "
        + " | ".join(_number(g.ranks.get(kind)) for kind in KINDS)
        + " |"
        for g in gates(judged, errors, recipe, bad)
    )
    return f"""# How good the verdicts are on real errors

{said}

Of {len(bad)} clips {good} are usable; {kept} are kept, {both} of them usable: precision {_share(both, kept)}, recall
{_share(both, good)}. Of {int(bad.sum())} that are not usable {int((bad & dropped).sum())} are rejected.

| error | not usable | clips | rejected |
| --- | --- | --- | --- |
{kinds}

| score | rejects | clips | not usable | usable, alone | 95 % of usable within | {" | ".join(KINDS)} |
| --- | --- | --- | --- | --- | --- |{" --- |" * len(KINDS)}
{rows}

The last columns are Spearman's rank correlations with each error, positive where a worse score goes with a larger error.
"""


def gates(
    judged: Judged, errors: Sequence[Mapping[str, float]], recipe: CurateRecipe, bad: Bool[np.ndarray, " N"]
) -> list[GateOnErrors]:
    """Of every score that the recipe may reject by and some clip has."""
    failures = judged.failures()
    found = []
    for name, check in recipe.checks:
        for score, limit in {} if check is None else limits(check).items():
            values = verdicts.column(judged.table, score).astype(np.float64)
            for outcome, side, bound in limit.bounds():
                if outcome != "fail" or not np.isfinite(values).any():
                    continue
                by = [f.rows for f in judged.findings if (f.gate, f.outcome) == (f"{name}.{score}", "fail")]
                rows = np.concatenate([np.zeros(0, np.int64), *by])
                found.append(
                    GateOnErrors(
                        score=score,
                        bound=f"{side} {bound:g}",
                        rejects=len(rows),
                        rejects_unusable=int(bad[rows].sum()),
                        alone=int((~bad[rows] & (failures[rows] == 1)).sum()),
                        usable_within=_within(values[~bad], side),
                        ranks=_ranks(values, side, errors),
                    )
                )
    return found


def _ranks(values: Float64[np.ndarray, " N"], side: Side, errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found = {}
    for kind, (name, bad_side) in KINDS.items():
        error = _column(errors, name)
        both = np.isfinite(values) & np.isfinite(error)
        if both.sum() >= LEAST_CLIPS and np.ptp(values[both]) > 0 and np.ptp(error[both]) > 0:
            found[kind] = (1 if side == bad_side else -1) * spearman(values[both], error[both])
    return found


def spearman(a: Float64[np.ndarray, " N"], b: Float64[np.ndarray, " N"]) -> float:
    """Pearson's correlation of ranks; equal values share their mean rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[where]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def _within(values: Float64[np.ndarray, " N"], side: Side) -> float | None:
    values = values[np.isfinite(values)]
    return float(np.quantile(values, 0.05 if side == "below" else 0.95)) if len(values) else None


def _column(errors: Sequence[Mapping[str, float]], name: str) -> Float64[np.ndarray, " N"]:
    return np.array([clip.get(name, np.nan) for clip in errors], np.float64)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
