"""What must be known of all clips at once, in 40 bytes each: who looks like whom, and how many there are of each data set."""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int8, Int64, UInt64

from curate import duplicates
from curate.recipe import CurateRecipe, Duplicates
from curate.verdicts import FAIL

Hashes = UInt64[np.ndarray, " N"]


class Ledger:
    """`add` every table, `decide` once, then ask."""

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = {}
        self._ids: list[pa.Array] = []
        self._datasets: dict[str, int] = {}
        self._alike = np.zeros(0, np.uint64)
        self._alike_of = pa.array([], pa.string())
        self._factor: dict[str, float] = {}

    def add(self, table: pa.Table, clip: Hashes, source: Hashes, level: Int8[np.ndarray, " N"]) -> None:
        """Remember the clips that nothing rejected so far."""
        alive = np.flatnonzero(level < FAIL)
        phash = pa.nulls(len(alive), pa.int64())
        if "phash" in table.column_names:
            phash = _one(table["phash"].take(pa.array(alive)))
        self._ids.append(_one(table["clip_id"].take(pa.array(alive))))
        found = {
            "clip": clip[alive],
            "source": source[alive],
            "phash": phash.fill_null(0).to_numpy().astype(np.uint64),
            "seen": phash.is_valid().to_numpy(zero_copy_only=False),
            "level": level[alive],
            "dataset": self._codes(table["dataset"].take(pa.array(alive))),
        }
        for name, values in found.items():
            self._columns.setdefault(name, []).append(values)

    def decide(self, recipe: CurateRecipe) -> None:
        """Which clips yield to one that looks alike, and how often each data set is drawn.

        Raises ValueError if a data set of the mixture has no clip that is kept.
        """
        whole = {
            name: np.concatenate(self._columns.pop(name)) for name in list(self._columns)
        }  # one at a time is doubled
        kept = whole["level"] < FAIL if recipe.keep == "flag" else whole["level"] == 0
        if recipe.duplicates is not None:
            kept &= ~self._find_alike(whole, kept, recipe.duplicates)
        weight = np.where(whole["level"] > 0, recipe.flagged_weight, 1.0) * kept
        drawn = {name: float(weight[whole["dataset"] == code].sum()) for name, code in self._datasets.items()}
        for name in recipe.mixture:
            if not drawn.get(name):
                there = ", ".join(sorted(name for name, number in drawn.items() if number)) or "none at all"
                raise ValueError(f"mixture: asks for {name}, of which no clip is kept; there is {there}")
        shares, every = sum(recipe.mixture.values()), sum(drawn.values())
        self._factor = {name: share / shares * every / drawn[name] for name, share in recipe.mixture.items()}

    @property
    def num_alike(self) -> int:
        """How many clips yield."""
        return len(self._alike)

    def alike(self, clip: Hashes) -> tuple[Int64[np.ndarray, " M"], list[str]]:
        """(The rows that yield, the ids of the clips they look like.)"""
        if not len(self._alike):
            return np.zeros(0, np.int64), []
        at = np.searchsorted(self._alike, clip).clip(max=len(self._alike) - 1)
        rows = np.flatnonzero(self._alike[at] == clip)
        return rows, self._alike_of.take(pa.array(at[rows])).to_pylist()

    def factor(self, datasets: pa.ChunkedArray | pa.Array) -> Float32[np.ndarray, " N"]:
        """What the mixture multiplies weights with; 1 for rows without a data set (clips that failed before it was known)."""
        coded = _coded(datasets)
        factors = [self._factor.get(name, 1.0) for name in coded.dictionary.to_pylist()]
        return np.array(factors, np.float32)[coded.indices.to_numpy()] if factors else np.zeros(0, np.float32)

    def _find_alike(
        self, whole: dict[str, np.ndarray], kept: Bool[np.ndarray, " N"], knobs: Duplicates
    ) -> Bool[np.ndarray, " N"]:
        rows = np.flatnonzero(whole["seen"] & kept)
        clip, source, phash = (whole[name][rows] for name in ("clip", "source", "phash"))
        first = duplicates.first_alike(phash, source, clip, knobs.max_distance_bits, knobs.within_source)
        yields = np.flatnonzero(first >= 0)
        yields = yields[np.argsort(clip[yields], kind="stable")]
        self._alike = clip[yields]
        self._alike_of = _one(pa.chunked_array(self._ids, pa.string()).take(pa.array(rows[first[yields]])))
        self._ids.clear()
        found = np.zeros(len(kept), bool)
        found[rows[yields]] = True
        return found

    def _codes(self, datasets: pa.ChunkedArray) -> np.ndarray:
        coded = _coded(datasets)
        codes = [self._datasets.setdefault(name, len(self._datasets)) for name in coded.dictionary.to_pylist()]
        return np.array(codes, np.int32)[coded.indices.to_numpy()] if codes else np.zeros(0, np.int32)


def _coded(texts: pa.ChunkedArray | pa.Array) -> pa.DictionaryArray:
    """Each text once, and which row has which; null is the empty text."""
    return _one(texts).fill_null("").dictionary_encode()


def _one(array: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Without chunks."""
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
