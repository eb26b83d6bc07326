"""The contract of a check: knobs with thresholds, called on the scores of a clip, answering with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from shared.clip import AnnotatedClip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one check says of one clip."""

    check: str
    score: float | None
    """None: the clip lacks what the check needs."""
    outcome: Literal["pass", "flag", "fail"]
    reason: str
    """One sentence for people; empty when it passed."""

    @property
    def keep(self) -> bool:
        return self.outcome != "fail"


@runtime_checkable
class Check(Protocol):
    """Measures once (`measure`, on the clip, at annotation) and decides as often as wanted (`judge`, on stored scores)."""

    @staticmethod
    def measure(clip: AnnotatedClip) -> dict[str, float]:
        """Scores under stable names, NaN-free: a score that cannot be had is left out."""
        ...

    def judge(self, scores: Mapping[str, float]) -> Verdict: ...
