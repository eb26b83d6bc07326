"""The contract of a check: what it measures once, and the limits that people put on what was measured.

A check is a class of knobs whose `Limit` fields are named after its scores. `measure` runs once, at annotation, and its scores are
stored for ever; limits are tried as often as wanted, on a table of scores (`curate.verdicts`) or on one clip's (`judge`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View

Outcome = Literal["pass", "flag", "fail"]
Side = Literal["below", "above"]
OUTCOMES: tuple[Outcome, ...] = ("pass", "flag", "fail")
"""From best to worst."""


class Limit(Knobs):
    """What a score may be. A clip without the score is not judged by it."""

    fail_below: float | None = None
    flag_below: float | None = None
    flag_above: float | None = None
    fail_above: float | None = None

    def bounds(self) -> list[tuple[Outcome, Side, float]]:
        """The limits that are set, failures first."""
        every: tuple[tuple[Outcome, Side, float | None], ...] = (
            ("fail", "below", self.fail_below),
            ("fail", "above", self.fail_above),
            ("flag", "below", self.flag_below),
            ("flag", "above", self.flag_above),
        )
        return [(outcome, side, bound) for outcome, side, bound in every if bound is not None]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one check says of one clip."""

    check: str
    score: float | None
    """The score that decided; None: the clip lacks what the check needs."""
    outcome: Outcome
    reason: str
    """One sentence for people; empty when it passed."""

    @property
    def keep(self) -> bool:
        return self.outcome != "fail"


@runtime_checkable
class Check(Protocol):
    """A `Knobs` class with a `Limit` (or None) for every score that may decide."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        """Scores under stable names, NaN-free: a score that cannot be had is left out."""
        ...


def limits(check: Knobs) -> dict[str, Limit]:
    """The limits of a check that are not switched off, by score."""
    return {name: limit for name, limit in check if isinstance(limit, Limit)}


def reason(check: str, score: str, side: str, bound: float, value: float) -> str:
    """`rigid_flow: rigid_flow_px is 3.1, above 2`."""
    return f"{check}: {score} is {value:.3g}, {side} {bound:g}"


def judge(name: str, check: Knobs, scores: Mapping[str, float]) -> Verdict:
    """The worst that the check's limits say of these scores."""
    verdict = Verdict(check=name, score=None, outcome="pass", reason="")
    for score, limit in limits(check).items():
        value = scores.get(score)
        if value is None:
            continue
        found = _judge(name, score, limit, value)
        if verdict.score is None or OUTCOMES.index(found.outcome) > OUTCOMES.index(verdict.outcome):
            verdict = found
    return verdict


def _judge(name: str, score: str, limit: Limit, value: float) -> Verdict:
    for outcome, side, bound in limit.bounds():
        if value < bound if side == "below" else value > bound:
            return Verdict(check=name, score=value, outcome=outcome, reason=reason(name, score, side, bound, value))
    return Verdict(check=name, score=value, outcome="pass", reason="")
