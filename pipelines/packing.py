"""From a block's spool to its shards, and back when clips of it are tried again.

Shards are a pure function of the plan and of the artifacts. They are written last to first, so that the index of shard `00`, there
or not, says whether the block is committed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import spool
from shared import files, shards

Item = tuple[str, Mapping[str, bytes], dict[str, Any]]


def shard_name(block: str, number: int) -> str:
    return f"{block}-{number:02d}"


def committed_blocks(shards_uri: str) -> set[str]:
    """Names of the blocks whose last index is written."""
    if not files.exists(shards_uri):
        return set()
    ends = (uri.rpartition("/")[2] for uri in files.list_files(shards_uri, ("-00.parquet",)))
    return {name.removesuffix("-00.parquet") for name in ends}


def pack(
    *,
    block: str,
    folder: str,
    shards_uri: str,
    videos: list[dict[str, Any]],
    failed: dict[str, str],
    clips_per_shard: int,
) -> dict[str, Any]:
    """Writes the shards of a block whose every clip is annotated, screened out or in `failed`, with the reason.

    `videos` are the block's, in order: key, dataset, uri, caption, licence, scores that their list gave.
    """
    rows = [row for video in videos for row in _rows(folder, video, failed)]
    groups = list(_grouped(rows, clips_per_shard))
    for number in reversed(range(len(groups))):
        shards.write_shard(shards_uri, shard_name(block, number), _items(folder, groups[number]))
    counts = {status: sum(row["status"] == status for row in rows) for status in ("annotated", "screened", "failed")}
    return {"shards": len(groups), **counts}


def unpack(*, block: str, folder: str, shards_uri: str, again: set[str]) -> None:
    """Opens a committed block: all of its artifacts but those to be made `again` go back to the spool, then its shards vanish.

    May be killed at any point: until the first index is gone the block is committed, after it the spool is whole.
    """
    names = [shard_name(block, n) for n in range(_num_shards(shards_uri, block))]
    for name in names:
        for row in shards.read_index(files.join(shards_uri, f"{name}.tar")).to_pylist():
            if row["status"] == "annotated" and row["clip_id"] not in again:
                members = shards.read_members(shards_uri, row)
                shards.write_artifact(spool.clip_uri(folder, row["clip_id"]), row["clip_id"], members, _bare(row))
    for name in names:
        files.remove(files.join(shards_uri, f"{name}.parquet"))
    for name in names:
        files.remove(files.join(shards_uri, f"{name}.tar"))


def remove_run(shards_uri: str, run: str) -> None:
    """Removes every shard of a run, indexes first."""
    uris = [uri for uri in files.list_files(shards_uri) if uri.rpartition("/")[2].startswith(f"{run}-")]
    for uri in sorted(uris, key=lambda uri: not uri.endswith(".parquet")):
        files.remove(uri)


def _rows(folder: str, video: dict[str, Any], failed: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Index rows of one video's clips, with status and reason; of annotated ones only the start."""
    key = video["key"]
    if key in failed:
        told = (video[name] for name in ("dataset", "uri", "caption", "licence"))
        row = spool.video_row(key, *told, scores=video.get("scores"))
        yield {**row, "status": "failed", "reason": failed[key]}
        return
    for slip in spool.read_slips(spool.cut_uri(folder, key)):
        why = slip.reason or failed.get(slip.clip_id, "")
        status = "screened" if slip.reason else "failed" if why else "annotated"
        yield {**slip.row, "status": status, "reason": why}


def _grouped(rows: list[dict[str, Any]], clips_per_shard: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in order, no more than so many annotated clips together."""
    group: list[dict[str, Any]] = []
    annotated = 0
    for row in rows:
        if row["status"] == "annotated" and annotated == clips_per_shard:
            yield group
            group, annotated = [], 0
        group.append(row)
        annotated += row["status"] == "annotated"
    yield group


def _items(folder: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    for row in rows:
        if row["status"] == "annotated":
            clip_id, members, whole = shards.read_artifact(spool.clip_uri(folder, row["clip_id"]))
            yield clip_id, members, {**whole, "phash": row["phash"]}
        else:
            yield row["clip_id"], {}, row


def _num_shards(shards_uri: str, block: str) -> int:
    names = [uri.rpartition("/")[2] for uri in files.list_files(shards_uri, (".parquet",))]
    return sum(name.startswith(f"{block}-") for name in names)


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """An index row as it was before its shard was written."""
    written = {"shard", "parts", "format"}
    kept = {name: value for name, value in row.items() if name not in written and value is not None}
    return {**kept, "annotators": dict(row["annotators"] or ())}
