"""The kept clips as shards of their own, for those who ship them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from curate import select
from curate.sorted_rows import Hashes, hash_texts
from shared import files, shards
from shared.index import INDEX

CLIPS = 256
"""In a shard."""
_OF_A_SHARD = ("format", "shard", "parts")


def materialize(out_uri: str, dest_uri: str) -> int:
    """Copy the members of every kept clip, byte for byte, into DEST/shards; returns how many. The order is that of the indexes.

    Raises ValueError if there is no selection, or DEST holds shards already.
    """
    selection = select.read_selection(out_uri, ["clip_id", "keep"])
    if selection is None:
        raise ValueError(f"{out_uri}: has no selection, run `worldreel curate {out_uri}` first")
    target = files.join(dest_uri, "shards")
    if files.exists(target) and next(iter(files.list_files(target, (".tar", ".parquet"))), None):
        raise ValueError(f"{target}: holds shards already, expected an empty folder")
    rows = _kept_rows(out_uri, np.sort(hash_texts(selection.filter(selection["keep"])["clip_id"])))
    number = copied = 0
    while group := [row for _, row in zip(range(CLIPS), rows)]:
        items = ((row["clip_id"], _members(out_uri, row), _index_row(row)) for row in group)
        shards.write_shard(target, f"kept-{number:06d}", items)
        number, copied = number + 1, copied + len(group)
    return copied


def _kept_rows(out_uri: str, kept: Hashes) -> Iterator[dict[str, Any]]:
    left = np.ones(len(kept), bool)
    for table in shards.iter_index(out_uri):
        hashes = hash_texts(table["clip_id"])
        at = np.searchsorted(kept, hashes).clip(max=max(len(kept) - 1, 0))
        for index in np.flatnonzero(kept[at] == hashes) if len(kept) else ():
            row = table.slice(index, 1).to_pylist()[0]
            if row["status"] == "annotated" and left[at[index]]:
                left[at[index]] = False  # a clip that is in two shards is copied once
                yield row


def _members(out_uri: str, row: dict[str, Any]) -> dict[str, bytes]:
    inner = files.join(out_uri, "shards")
    return shards.read_members(inner if files.exists(inner) else out_uri, row)


def _index_row(row: dict[str, Any]) -> dict[str, Any]:
    """As `write_shard` takes it: a missing score is no column, a map is a dictionary."""
    known = {name: value for name, value in row.items() if name in INDEX.names and name not in _OF_A_SHARD}
    scores = {name: value for name, value in row.items() if name not in INDEX.names and value is not None}
    return known | scores | {"annotators": dict(row["annotators"] or {})}
