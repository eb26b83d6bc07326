"""`worldreel status OUT`: what a run has done so far, from its files alone, while it works and after."""

import json
import time
from dataclasses import dataclass
from typing import Any

from pipelines import lease, ledger, packing, plan, progress, sources
from pipelines.funnel import Funnel, count
from shared import files

_REST = "every one, with its reason: rows with status failed in shards/*.parquet (before the commit: ledger/*.jsonl)"
_FRESH_S = 120.0
"""So long the last word of another machine's driver is taken for a sign of life."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run as its files tell it."""

    videos: int
    funnel: Funnel
    blocks: int
    committed: int
    """Of those."""
    first: float | None
    """Unix times of the ledger's first and last event."""
    last: float | None
    recent_clips: int
    """Annotated in the last ten minutes before that."""
    at_work: bool
    """A driver lives."""

    @property
    def pace(self) -> float:
        """Clips a second, lately."""
        if self.last is None or self.first is None:
            return 0.0
        return progress.rate(self.recent_clips, min(600.0, self.last - self.first))


def read(out: str) -> Status:
    """Raises ValueError if OUT holds no run."""
    out = sources.absolute(out)
    run = plan.current(out)
    if run is None:
        raise ValueError(f"{out}: holds no run of worldreel annotate")
    funnel, ends, first, last = Funnel(), [], None, None
    for name, events in ledger.read(out):
        if not name.startswith(f"{run}-"):
            continue
        funnel += count(ledger.standings(events).values())
        ends += [event["time"] for event in events if event["event"] == "done" and event.get("kind") == "clip"]
        first = min(filter(None, (first, events[0]["time"] if events else None)), default=None)
        last = max(filter(None, (last, events[-1]["time"] if events else None)), default=None)
    recent = sum(moment > (last or 0) - 600 for moment in ends)
    videos, blocks = plan.size(out, run)
    done = packing.committed_blocks(files.join(out, "shards"))
    return Status(
        videos=videos,
        funnel=funnel,
        blocks=blocks,
        committed=sum(name.startswith(f"{run}-") for name in done),
        first=first,
        last=last,
        recent_clips=recent,
        at_work=_at_work(out, last),
    )


def show(out: str, *, as_json: bool = False) -> None:
    """Prints it."""
    status = read(out)
    print(json.dumps(as_dict(status), indent=1) if as_json else "\n".join(lines(status)))


def as_dict(status: Status) -> dict[str, Any]:
    """For programs."""
    return {
        "videos": status.videos,
        **status.funnel.as_dict(),
        "blocks": status.blocks,
        "blocks_committed": status.committed,
        "complete": complete(status),
        "at_work": status.at_work,
        "first_event": status.first,
        "last_event": status.last,
        "clips_per_second": status.pace,
        "video_hours_per_day": status.pace * _seconds_a_clip(status) * 24,
    }


def lines(status: Status) -> list[str]:
    """For people."""
    found = list(progress.told(status.funnel, status.videos))
    if complete(status):
        state = "complete"
    elif status.at_work:
        state = f"at work, {progress.eta(status.funnel, status.videos, status.pace)}"
    else:
        state = "stopped before its end: run the same command again"
    hours = status.pace * _seconds_a_clip(status) * 24
    found.append(f"{status.pace * 60:.1f} clips/min lately, {hours:.1f} video hours a day; {state}")
    for kind, times in status.funnel.failed.most_common(5):
        examples = "; ".join(status.funnel.told_examples(kind))
        found.append(f"failed, {kind}: {times}, for example {examples}")
    if status.funnel.failed:
        found.append(_REST)
    if status.funnel.quarantined:
        found.append("what a quarantined one said last: quarantine/*.json")
    return found


def complete(status: Status) -> bool:
    """True: everything that was planned is committed."""
    return status.committed == status.blocks


def _at_work(out: str, last: float | None) -> bool:
    """A driver of this machine is known for certain, one of another by what it said last."""
    lives = lease.at_work(out)
    return last is not None and time.time() - last < _FRESH_S if lives is None else lives


def _seconds_a_clip(status: Status) -> float:
    return status.funnel.video_seconds / max(status.funnel.annotated, 1)
