"""The funnel: videos cut, clips found, screened out and why, annotated, failed, committed. Counted from the ledger alone."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipelines.ledger import Standing

_EXAMPLES = 3


@dataclass(kw_only=True)
class Funnel:
    """Counts; add two with `+`."""

    videos_cut: int = 0
    videos_failed: int = 0
    clips_found: int = 0
    screened: Counter[str] = field(default_factory=Counter)
    """By reason."""
    annotated: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Clips and videos, by class of fault."""
    quarantined: int = 0
    """Of those."""
    blocks_committed: int = 0
    clips_committed: int = 0
    """Rows of index: annotated, screened out or failed."""
    attempts: int = 0
    video_seconds: float = 0.0
    """Of annotated clips."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Workers' wall time."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Of each class of fault the first few: key, uri, reason."""

    def __add__(self, other: "Funnel") -> "Funnel":
        apart = ("stage_seconds", "cpu_seconds", "examples")
        return Funnel(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name not in apart},
            stage_seconds=_sum(self.stage_seconds, other.stage_seconds),
            cpu_seconds=_sum(self.cpu_seconds, other.cpu_seconds),
            examples={
                kind: [*self.examples.get(kind, []), *other.examples.get(kind, [])][:_EXAMPLES]
                for kind in (*self.examples, *other.examples)
            },
        )

    @property
    def clips_failed(self) -> int:
        return sum(self.failed.values()) - self.videos_failed

    def told_examples(self, kind: str) -> list[str]:
        """The first faults of a class: what each happened to and why, neither said twice."""
        told = []
        for example in self.examples[kind]:
            why = example["reason"].removeprefix(f"{kind}: ")
            told.append(why if example["uri"] in why else f"{example['key']} of {example['uri']}: {why}")
        return told

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def number(count: int, thing: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def count(standings: Iterable[Standing]) -> Funnel:
    """What the standings of one block, or many, come to."""
    funnel = Funnel()
    for standing in standings:
        funnel.attempts += standing.begun
        if standing.end is None:
            continue
        if standing.end["event"] == "done":
            _add_done(funnel, standing.kind, standing.end)
        else:
            _add_failed(funnel, standing.kind, standing.end)
    return funnel


def _add_done(funnel: Funnel, kind: str, end: Any) -> None:
    if kind == "cut":
        funnel.videos_cut += 1
        funnel.clips_found += end["clips"]
        funnel.screened.update(end["screened"])
    elif kind == "clip":
        funnel.annotated += 1
        funnel.video_seconds += end.get("video_seconds", 0.0)
        funnel.stage_seconds = _sum(funnel.stage_seconds, end.get("wall", {}))
        funnel.cpu_seconds = _sum(funnel.cpu_seconds, end.get("cpu", {}))
    else:
        funnel.blocks_committed += 1
        funnel.clips_committed += end["annotated"] + end["screened"] + end["failed"]


def _add_failed(funnel: Funnel, kind: str, end: Any) -> None:
    funnel.failed[end["class"]] += 1
    funnel.videos_failed += kind == "cut"
    funnel.quarantined += end["event"] == "quarantined"
    example = {"key": end["key"], "uri": end.get("uri", ""), "reason": end.get("reason", "")}
    few = funnel.examples.setdefault(end["class"], [])
    if len(few) < _EXAMPLES:
        few.append(example)


def _sum(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in [*first, *second]}
