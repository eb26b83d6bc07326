"""What is decided of a table of clips by itself: each row's worst outcome, and every reason."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import translate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int8, Int64

from curate import licences
from curate.check import OUTCOMES, limits, reason
from curate.checks import Checks
from curate.recipe import CurateRecipe, checks_for
from shared.index import SCORE

Rows = Int64[np.ndarray, " N"]
FAIL = OUTCOMES.index("fail")


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """Clips that are beyond one limit."""

    outcome: str
    gate: str
    """`check.score`, or the name of what is no score."""
    rows: Rows
    reasons: list[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A table of index rows and what was decided of them."""

    table: pa.Table
    findings: tuple[Finding, ...]

    def annotated(self) -> Bool[np.ndarray, " N"]:
        return _true(pc.equal(self.table["status"], "annotated"))  # pyright: ignore[reportAttributeAccessIssue]

    def levels(self) -> Int8[np.ndarray, " N"]:
        """Each row's worst outcome, as its place in `OUTCOMES`."""
        levels = np.zeros(len(self.table), np.int8)
        for finding in self.findings:
            levels[finding.rows] = np.maximum(levels[finding.rows], OUTCOMES.index(finding.outcome))
        return levels

    def failures(self) -> Int64[np.ndarray, " N"]:
        """By how many gates each row fails."""
        failing = [finding.rows for finding in self.findings if finding.outcome == "fail"]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *failing]), minlength=len(self.table))

    def reasons(self) -> pa.ListArray:
        """Every row's reasons."""
        rows = np.concatenate([np.zeros(0, np.int64), *(finding.rows for finding in self.findings)])
        texts = pa.array([text for finding in self.findings for text in finding.reasons], pa.string())
        ends = np.cumsum(np.r_[0, np.bincount(rows, minlength=len(self.table))])
        by_row = texts.take(pa.array(np.argsort(rows, kind="stable")))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), by_row)


def judge(table: pa.Table, recipe: CurateRecipe) -> Judged:
    """All that a clip's own row decides."""
    found = [*_not_scores(table, recipe), *_beyond_limits(table, recipe)]
    return Judged(table=table, findings=tuple(finding for finding in found if len(finding.rows)))


def column(table: pa.Table, score: str) -> np.ndarray:
    """A score's float32 values, NaN where there is none; all NaN without the column."""
    if SCORE + score not in table.column_names:
        return np.full(len(table), np.nan, np.float32)
    return table[SCORE + score].to_numpy()


def _beyond_limits(table: pa.Table, recipe: CurateRecipe) -> Iterator[Finding]:
    """A clip may be beyond several limits, but once for each score."""
    rest = np.arange(len(table))
    for entry in recipe.per_source:
        matching = _matches(table, "dataset", entry.dataset) & _matches(table, "source", entry.source)
        yield from _beyond(table, checks_for(recipe.checks, entry), rest[matching[rest]])
        rest = rest[~matching[rest]]
    yield from _beyond(table, recipe.checks, rest)


def _beyond(table: pa.Table, checks: Checks, rows: Rows) -> Iterator[Finding]:
    every = ((name, *gate) for name, check in checks if check is not None for gate in limits(check).items())
    for name, score, limit in every:
        values = column(table, score)[rows]
        free = np.ones(len(rows), bool)
        for outcome, side, bound in limit.bounds():
            beyond = free & (values < bound if side == "below" else values > bound)  # NaN is neither
            free &= ~beyond
            at = np.flatnonzero(beyond)
            texts = [reason(name, score, side, bound, value) for value in values[at].tolist()]
            yield Finding(outcome=outcome, gate=f"{name}.{score}", rows=rows[at], reasons=texts)


def _not_scores(table: pa.Table, recipe: CurateRecipe) -> Iterator[Finding]:
    """What is no question of scores: never annotated, too short, of another rate, not in the mixture, the wrong licence."""
    annotated = Judged(table=table, findings=()).annotated()
    missing = np.flatnonzero(~annotated)
    told = zip(*(table[name].take(pa.array(missing)).to_pylist() for name in ("status", "reason")))
    yield _fail("annotation", missing, [f"{status}: {why}" if why else status for status, why in told])
    short = np.flatnonzero(annotated & (table["num_frames"].to_numpy() < recipe.min_frames))
    yield _fail("min_frames", short, [f"min_frames: shorter than {recipe.min_frames} frames"] * len(short))
    if recipe.fps is not None:
        fps = table["fps"].to_numpy()
        other = np.flatnonzero(annotated & ~(np.abs(fps / recipe.fps - 1) <= 0.05))  # NaN is another rate
        yield _fail("fps", other, [f"fps: is {rate:.3g}, asked for {recipe.fps:g}" for rate in fps[other].tolist()])
    if recipe.mixture:
        dataset = table["dataset"].fill_null("").to_numpy().astype(str)
        strange = np.flatnonzero(annotated & ~np.isin(dataset, list(recipe.mixture)))
        yield _fail("mixture", strange, [f"mixture: names no share of {name}" for name in dataset[strange]])
    if recipe.licences.commercial_ok or recipe.licences.allowed is not None:
        yield _wrong_licence(table, recipe, annotated)


def _wrong_licence(table: pa.Table, recipe: CurateRecipe, annotated: Bool[np.ndarray, " N"]) -> Finding:
    known: dict[tuple[str | None, ...], str] = {}
    rows, texts = [], []
    for row, terms in enumerate(zip(table["licence"].to_pylist(), table["annotator_licences"].to_pylist())):
        key = (terms[0], *(terms[1] or ()))
        if key not in known:
            known[key] = licences.refusal(recipe.licences, terms[0], terms[1] or ())
        if known[key] and annotated[row]:
            rows.append(row)
            texts.append(known[key])
    return _fail("licences", np.array(rows, np.int64), texts)


def _fail(gate: str, rows: Rows, reasons: list[str]) -> Finding:
    return Finding(outcome="fail", gate=gate, rows=rows, reasons=reasons)


def _matches(table: pa.Table, name: str, glob: str) -> Bool[np.ndarray, " N"]:
    if glob == "*":
        return np.ones(len(table), bool)
    return _true(pc.match_substring_regex(table[name].fill_null(""), _anchored(glob)))  # pyright: ignore[reportAttributeAccessIssue]


def _true(answers: pa.ChunkedArray) -> Bool[np.ndarray, " N"]:
    """True where the answer is yes; null is no."""
    return answers.fill_null(False).to_numpy()


def _anchored(glob: str) -> str:
    """The glob as RE2 reads it (`fnmatch` writes an atomic group and \\Z for Python)."""
    body = re.sub(r"\\[zZ]$", "", translate(glob).removeprefix("(?s:").rstrip()).removesuffix(")")
    return f"(?s)^(?:{body.replace('(?>', '(?:')})$"
