"""What a selection came to: exact counts of every clip, and a sample of scores for the histograms."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt64

from curate.check import OUTCOMES
from curate.verdicts import Judged
from shared.index import SCORE


@dataclass(kw_only=True, eq=False)
class Summary:
    """Filled as rows go by."""

    found: int = 0
    status: Counter[str] = field(default_factory=Counter)
    """How annotation ended: annotated, screened, failed."""
    failed_by: Counter[str] = field(default_factory=Counter)
    """Gate -> annotated clips beyond it; a clip may be beyond several."""
    failed_only_by: Counter[str] = field(default_factory=Counter)
    """Gate -> clips that no other gate rejects: what switching it off would keep."""
    flagged_by: Counter[str] = field(default_factory=Counter)
    outcome: Counter[str] = field(default_factory=Counter)
    """pass, flag or fail, of all clips in the end."""
    kept: int = 0
    kept_frames: Counter[float] = field(default_factory=Counter)
    """Frames a second -> frames."""
    kept_of: Counter[str] = field(default_factory=Counter)
    """Data set -> kept clips."""
    split: Counter[str] = field(default_factory=Counter)
    """Split -> kept clips."""
    evaluation: dict[str, list[str]] = field(default_factory=dict)
    """`general` and `complex`: clip ids."""
    newly_kept: int | None = None
    """Against the selection that was there; None: there was none."""
    newly_dropped: int | None = None
    sample: pa.Table | None = None
    """Scores, level (0 pass, 1 flag, 2 fail) and row's reasons of some clips, drawn by hash whatever the order of the index."""

    def count(self, judged: Judged) -> None:
        """A table, before anything is known of the others."""
        annotated, failures = judged.annotated(), judged.failures()
        self.found += len(judged.table)
        for answer in judged.table["status"].value_counts().to_pylist():
            self.status[answer["values"]] += answer["counts"]
        for finding in judged.findings:
            rows = finding.rows[annotated[finding.rows]]
            if not len(rows):
                continue
            if finding.outcome == "fail":
                self.failed_by[finding.gate] += len(rows)
                self.failed_only_by[finding.gate] += int((failures[rows] == 1).sum())
            else:
                self.flagged_by[finding.gate] += len(rows)

    def count_kept(self, decided: pa.Table, newly_kept: int | None, newly_dropped: int | None) -> None:
        """Rows with everything decided."""
        for level, number in zip(*np.unique(decided["level"].to_numpy(), return_counts=True)):
            self.outcome[OUTCOMES[level]] += int(number)
        kept = decided.filter(decided["keep"])
        self.kept += len(kept)
        for fps, frames in zip(kept["fps"].to_pylist(), kept["num_frames"].to_pylist()):
            self.kept_frames[fps] += frames
        for counter, name in ((self.kept_of, "dataset"), (self.split, "split")):
            for answer in kept[name].value_counts().to_pylist():
                counter[answer["values"]] += answer["counts"]
        if newly_kept is not None and newly_dropped is not None:
            self.newly_kept = (self.newly_kept or 0) + newly_kept
            self.newly_dropped = (self.newly_dropped or 0) + newly_dropped

    @property
    def kept_hours(self) -> float:
        return sum(self.kept_frames[fps] / fps for fps in sorted(self.kept_frames)) / 3600

    def lines(self) -> list[str]:
        """The funnel, for a terminal."""
        annotated = self.status["annotated"]
        lines = [f"{self.found} clips found: " + ", ".join(f"{n} {name}" for name, n in sorted(self.status.items()))]
        if repeated := self.found - sum(self.outcome.values()):
            lines += [f"  {repeated} of them rows of clips that another shard holds too: left out"]
        lines += [f"{self.kept} kept of {annotated} annotated, {self.kept_hours:.3g} hours"]
        lines += [f"  {n} rejected by {gate}" for gate, n in self.failed_by.most_common()]
        lines += [f"  {n} flagged by {gate}" for gate, n in self.flagged_by.most_common()]
        lines += ["splits: " + ", ".join(f"{n} {name}" for name, n in sorted(self.split.items()))] if self.kept else []
        if self.newly_kept is not None:
            lines += [f"against the selection before: {self.newly_kept} newly kept, {self.newly_dropped} newly dropped"]
        return lines

    def numbers(self) -> dict[str, Any]:
        """Everything but the sample, for programs."""
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self).items() if name != "sample"}


class Sample:
    """Scores of the `size` annotated clips with the smallest hashes of all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._hashes = np.zeros(0, np.uint64)
        self.rows: pa.Table | None = None

    def add(self, hashes: UInt64[np.ndarray, " N"], judged: Judged) -> None:
        wanted = judged.annotated()
        if len(self._hashes) == self._size:
            wanted &= hashes < self._hashes[-1]
        if not wanted.any():
            return
        scores = [name for name in judged.table.column_names if name.startswith(SCORE)]
        table = judged.table.select(["clip_id", *scores]).append_column("level", pa.array(judged.levels()))
        table = table.append_column("reasons", judged.reasons()).filter(pa.array(wanted))
        table = table if self.rows is None else pa.concat_tables([self.rows, table], promote_options="default")
        every = np.concatenate((self._hashes, hashes[wanted]))
        order = np.argsort(every, kind="stable")[: self._size]
        self._hashes, self.rows = every[order], table.take(pa.array(order))


class Evaluation:
    """The two sets that the paper tests on, from kept clips of the validation split: any `size`, and those with most motion."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._general: list[str] = []
        self._complex: list[tuple[float, str]] = []

    def add(self, decided: pa.Table) -> None:
        """Rows in the order of their hashes, so that the first are as good as any."""
        held_out = pc.and_(decided["keep"], pc.equal(decided["split"], "validation"))  # pyright: ignore[reportAttributeAccessIssue]
        table = decided.select(["clip_id", "complexity"]).filter(held_out)
        ids = table["clip_id"].to_pylist()
        self._general += ids[: self._size - len(self._general)]
        self._complex += zip((-table["complexity"].to_numpy()).tolist(), ids)
        self._complex = sorted(self._complex)[: self._size]

    def sets(self) -> dict[str, list[str]]:
        return {"general": self._general, "complex": [clip_id for _, clip_id in self._complex]}
