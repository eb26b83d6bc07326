"""Scores and limits to a selection: which clips, how often, and why not the others. No shard is opened.

One pass over the indexes judges every clip and hands its row to a sort by the clip's hash; what only the whole run can tell
(duplicates, mixture) is decided in between; then the sorted rows are written. Memory stays bounded: some 40 bytes a clip and the
sort's share. The same clips give the same selection, whatever files they come in and whatever the order.
"""

import io
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, UInt64

from curate import verdicts
from curate.check import OUTCOMES
from curate.checks import Checks
from curate.ledger import Ledger
from curate.recipe import CurateRecipe, Splits
from curate.sorted_rows import SortedRows, hash_texts
from curate.summary import Evaluation, Sample, Summary
from curate.verdicts import FAIL, Judged
from shared import files, shards
from shared.index import SELECTION
from shared.knobs import dump

__all__ = ["Checks", "CurateRecipe", "Summary", "curate", "read_selection"]

BATCH = 50_000
_CARRIED = [name for name in SELECTION.names if name not in ("keep", "weight", "outcome", "reasons", "split", "shard")]


def curate(out_uri: str, recipe: CurateRecipe, dry_run: bool = False, to: str | None = None) -> Summary:
    """Write OUT/selection.parquet and its recipe, or write them into the folder `to`; returns what it came to.

    `dry_run` writes nothing.

    Raises ValueError if there is no annotated clip, or a data set of the mixture has no clip that is kept.
    """
    summary, sample, ledger = Summary(), Sample(recipe.report.sample), Ledger()
    with SortedRows() as rows:
        for judged in _judged(out_uri, recipe):
            clip, source = hash_texts(judged.table["clip_id"]), _source_hashes(judged.table, recipe.splits)
            summary.count(judged)
            sample.add(clip, judged)
            ledger.add(judged.table, clip, source, judged.levels())
            rows.add(clip, _row_table(judged, source))
        if not summary.status["annotated"]:
            raise ValueError(f"{out_uri}: no annotated clip among {summary.found}: run `worldreel annotate` first")
        ledger.decide(recipe)
        summary.failed_by.update({"duplicates": ledger.num_alike} if ledger.num_alike else {})
        target = to or out_uri
        before = _Before(target)
        write = partial(_write, rows, ledger, recipe, summary, before)
        if dry_run:
            write(None)
        else:
            files.write_whole(files.join(target, "selection.parquet"), write)
            files.write_whole(files.join(target, "selection.yaml"), dump(recipe).encode())
    summary.sample = sample.rows
    return summary


def read_selection(out_uri: str, columns: list[str] | None = None) -> pa.Table | None:
    """The selection of a run; None if there is none yet."""
    from pyarrow import parquet

    uri = files.join(out_uri, "selection.parquet")
    if not files.exists(uri):
        return None
    with files.open_input(uri) as file:
        return parquet.read_table(file, columns=columns)


def _judged(out_uri: str, recipe: CurateRecipe) -> Iterator[Judged]:
    for index in shards.iter_index(out_uri):
        for begin in range(0, len(index), BATCH):
            yield verdicts.judge(index.slice(begin, BATCH), recipe)


def _source_hashes(table: pa.Table, splits: Splits) -> UInt64[np.ndarray, " N"]:
    return hash_texts(table["source"], salt=f"{splits.seed}:")


def _row_table(judged: Judged, source: UInt64[np.ndarray, " N"]) -> pa.Table:
    """A row's part of the selection that needs no other clip, and for a while what decides the rest."""
    table = judged.table.select([name for name in _CARRIED if name in judged.table.column_names])
    shard = pc.binary_join_element_wise("shards", judged.table["shard"], "/")  # pyright: ignore[reportAttributeAccessIssue]
    more = {
        "shard": shard,
        "level": judged.levels(),
        "reasons": judged.reasons(),
        "source_hash": source,
        "complexity": _complexity(judged.table),
    }
    for name, values in more.items():
        table = table.append_column(name, values if isinstance(values, pa.ChunkedArray) else pa.array(values))
    return table


def _complexity(table: pa.Table) -> Float32[np.ndarray, " N"]:
    """How much moves in 3-D: the camera's path in depths, its turning in radians, and 30 frames of the movers."""
    parts = (("parallax", 1.0), ("rot_angle_rad", 1.0), ("motion_strength", 30.0))
    every = [np.float32(weight) * np.nan_to_num(verdicts.column(table, score)) for score, weight in parts]
    return np.stack(every).sum(axis=0)


def _write(
    rows: SortedRows, ledger: Ledger, recipe: CurateRecipe, summary: Summary, before: "_Before", file: BinaryIO | None
) -> None:
    """All rows in the order of their clips' hashes, decided; without a file they are only counted."""
    from pyarrow import parquet

    evaluation = Evaluation(recipe.evaluation_clips)
    schema = SELECTION.with_metadata(recipe.pixels.metadata())
    with parquet.ParquetWriter(file or io.BytesIO(), schema, compression="zstd") as writer:
        for clip, table in rows.parts():
            for begin in range(0, len(table), BATCH):
                hashes = clip[begin : begin + BATCH]
                decided = _decide(hashes, table.slice(begin, BATCH), ledger, recipe)
                summary.count_kept(decided, *before.compare(hashes, decided["keep"].to_numpy()))
                evaluation.add(decided)
                if file is not None:
                    writer.write_table(decided.select(SELECTION.names).cast(schema))
    summary.evaluation = evaluation.sets()


def _decide(clip: UInt64[np.ndarray, " N"], table: pa.Table, ledger: Ledger, recipe: CurateRecipe) -> pa.Table:
    alike, first = ledger.alike(clip)
    level = table["level"].to_numpy().copy()
    reasons = table["reasons"]
    if len(alike):
        level[alike] = FAIL
        told = reasons.to_pylist()
        for row, other in zip(alike.tolist(), first):
            told[row] = [*told[row], f"duplicates: looks like {other}"]
        reasons = pa.array(told, pa.list_(pa.string()))
    keep = level < FAIL if recipe.keep == "flag" else level == 0
    weight = np.where(level > 0, np.float32(recipe.flagged_weight), np.float32(1)) * keep
    decided = {
        "keep": keep,
        "weight": weight * ledger.factor(table["dataset"]),
        "outcome": np.array(OUTCOMES)[level],
        "reasons": reasons,
        "split": _split(table["source_hash"].to_numpy(), recipe.splits),
        "level": level,
    }
    for name, values in decided.items():
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, array)
    return table


def _split(source_hash: UInt64[np.ndarray, " N"], splits: Splits) -> np.ndarray:
    """By where the source's hash falls between 0 and 1: test first, then validation, then train."""
    place = source_hash / 2.0**64
    held_out = np.where(place < splits.test, "test", "validation")
    return np.where(place < splits.test + splits.validation, held_out, "train")


class _Before:
    """Which clips the selection that is there keeps, to tell what changes."""

    def __init__(self, out_uri: str) -> None:
        table = read_selection(out_uri, ["clip_id", "keep"])
        self._hashes = None
        if table is not None:
            hashes = hash_texts(table["clip_id"])
            order = np.argsort(hashes, kind="stable")
            self._hashes, self._keep = hashes[order], table["keep"].to_numpy()[order]

    def compare(self, clip: UInt64[np.ndarray, " N"], keep: Bool[np.ndarray, " N"]) -> tuple[int | None, int | None]:
        """(Newly kept, newly dropped); None without a selection before."""
        if self._hashes is None:
            return None, None
        at = np.searchsorted(self._hashes, clip).clip(max=max(len(self._hashes) - 1, 0))
        known = self._hashes[at] == clip if len(self._hashes) else np.zeros(len(clip), bool)
        was = known & self._keep[at] if len(self._hashes) else known
        return int((keep & ~was).sum()), int((~keep & was).sum())
