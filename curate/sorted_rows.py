"""Rows in the order of their clips' hashes, however many there are: a sort that spills to disk.

The order of a selection must not depend on how its index was cut into files. Hashes are evenly spread, so rows are dealt into parts
by their first bits, each part is sorted by itself, and the parts follow one another.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt64

IN_MEMORY = 200_000
"""Rows up to which nothing is spilled."""
PARTS_BITS = 6

Hashes = UInt64[np.ndarray, " N"]


def hash_texts(texts: pa.ChunkedArray | pa.Array, salt: str = "") -> Hashes:
    """64 bits of BLAKE2 of each string, the same on every machine; a text that repeats is hashed once."""
    joined = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    coded = joined.fill_null("").dictionary_encode()
    digests = b"".join(
        hashlib.blake2b(f"{salt}{text}".encode(), digest_size=8).digest() for text in coded.dictionary.to_pylist()
    )
    hashes = np.frombuffer(digests, ">u8").astype(np.uint64)
    return hashes[coded.indices.to_numpy()] if len(hashes) else np.zeros(len(joined), np.uint64)


class SortedRows:
    """Takes tables with their rows' hashes in any order, gives them back sorted. A context: its spill goes with it."""

    def __init__(self) -> None:
        self._held: list[tuple[Hashes, pa.Table]] = []
        self._num_held = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def __enter__(self) -> "SortedRows":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, hashes: Hashes, table: pa.Table) -> None:
        self._held.append((hashes, table))
        self._num_held += len(table)
        if self._num_held > IN_MEMORY:
            self._spill()

    def parts(self) -> Iterator[tuple[Hashes, pa.Table]]:
        """All rows, a part at a time. Call it once, when everything was added."""
        if not self._writers:
            if self._held:
                yield _sorted(*self._together())
            return
        self._spill()
        for part in sorted(self._writers):
            self._writers.pop(part).close()
            path = self._path(part)
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
            path.unlink()
            hashes = table["hash"].to_numpy()
            yield _sorted(hashes, table.drop_columns(["hash"]))

    def _together(self) -> tuple[Hashes, pa.Table]:
        held, self._held, self._num_held = self._held, [], 0
        return np.concatenate([hashes for hashes, _ in held]), pa.concat_tables([table for _, table in held])

    def _spill(self) -> None:
        if not self._held:
            return
        hashes, table = self._together()
        table = table.append_column("hash", pa.array(hashes))
        part_of = (hashes >> np.uint64(64 - PARTS_BITS)).astype(np.int64)
        order = np.argsort(part_of, kind="stable")
        ends = np.searchsorted(part_of[order], np.arange(1 << PARTS_BITS), side="right")
        dealt, begin = table.take(pa.array(order)), 0
        for part, end in enumerate(ends.tolist()):
            if end > begin:
                self._writer(part, dealt.schema).write_table(dealt.slice(begin, end - begin))
            begin = end

    def _writer(self, part: int, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="worldreel-curate-")
        if part not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[part] = pa.ipc.new_stream(str(self._path(part)), schema, options=options)
        return self._writers[part]

    def _path(self, part: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{part:03d}.arrow"


def _sorted(hashes: Hashes, table: pa.Table) -> tuple[UInt64[np.ndarray, " M"], pa.Table]:
    """By hash. Of a clip that is there twice, the row with the better level and then the first shard's stays."""
    order = np.argsort(hashes, kind="stable")
    repeats = hashes[order[1:]] == hashes[order[:-1]]
    if repeats.any():
        order = _order(hashes, table)
        order = order[np.r_[True, hashes[order[1:]] != hashes[order[:-1]]]]
    return hashes[order], table.take(pa.array(order))


def _order(hashes: Hashes, table: pa.Table) -> np.ndarray:
    keyed = table.select(["level", "shard"]).append_column("hash", pa.array(hashes))
    keys = [("hash", "ascending"), ("level", "ascending"), ("shard", "ascending")]
    return pc.sort_indices(keyed, keys).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
