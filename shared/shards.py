"""Shards: plain WebDataset tars with a Parquet index beside each. All we know of the tar format is here.

`x.tar` holds the members of clips one after the other, `{clip_id}.json` first. `x.parquet` has one row a clip (`shared.index`), for
clips that were screened out or failed too, and the tar's sha256. It is written last: **a tar without index does not exist** yet.
Both are pure functions of what they hold: same clips, same bytes.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from shared import files
from shared.clip import AnnotatedClip
from shared.index import FORMAT, INDEX, SCORE
from shared.members import checksums, decode, encode, is_part, ordered, seal, unseal
from shared.store import Store

__all__ = [
    "Store",
    "decode",
    "encode",
    "index_foreign",
    "index_row",
    "is_committed",
    "iter_index",
    "read_artifact",
    "read_clip",
    "read_clips",
    "read_index",
    "read_members",
    "update_scores",
    "verify",
    "write_artifact",
    "write_shard",
]

Members = Mapping[str, bytes]
Row = Mapping[str, Any]

LOCAL_GAP_BYTES = 0  # another local read costs less than taking one apart: every member of a tar stands alone
REMOTE_GAP_BYTES = 4 << 20
"""Members that are closer than this are read at once: reading on costs less than asking again."""

_FORMAT, _SHA256, _BYTES = b"worldreel.format", b"worldreel.tar_sha256", b"worldreel.tar_bytes"
_ROW = "row.json"


def index_row(
    clip: AnnotatedClip, *, dataset: str = "video", work_key: str = "", annotator_licences: Collection[str] = ()
) -> dict[str, Any]:
    """The index row of an annotated clip, its scores among the columns. `write_shard` adds the shard and the parts."""
    num_frames, height, width = clip.shape
    slots = ("depth", "points", "cameras", "flow", "key_flow", "motion", "tracks")
    filled = {slot: part for slot in slots if (part := getattr(clip, slot)) is not None}
    return {
        "clip_id": clip.id,
        "status": "annotated",
        "reason": "",
        "source": clip.source,
        "dataset": dataset,
        "first_frame": int(clip.frames[0]),
        "last_frame": int(clip.frames[-1]),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "fps": float(clip.fps),
        "caption": clip.caption,
        "licence": clip.licence,
        "annotators": {slot: part.source for slot, part in filled.items()},
        "annotator_licences": sorted(set(annotator_licences)),
        "degenerate": clip.cameras.degenerate if clip.cameras else None,
        "metric": scaled.metric if (scaled := clip.depth or clip.cameras) else None,
        "work_key": work_key,
        **{SCORE + name: float(score) for name, score in clip.scores.items()},
    }


def write_shard(folder: files.Uri, name: str, items: Iterable[tuple[str, Members, Row]]) -> None:
    """Writes `name`.tar whole, then `name`.parquet, the commit mark.

    Items are (clip id, members, row), kept in their order; a row of a clip that was screened out or failed has no members. Raises
    ValueError for a repeated clip and for columns an index does not have.
    """
    tar_uri, index_uri = _uris(folder, name)
    files.remove(index_uri)  # or, until the new one is there, the old index would vouch for the new tar
    rows: list[Row] = []
    facts: dict[bytes, str] = {}

    def fill(file: BinaryIO) -> None:
        hashed = _Hashed(file)
        with _writer(hashed) as tar:
            rows.extend(_added(tar, name, items))
        facts.update({_FORMAT: str(FORMAT), _SHA256: hashed.digest.hexdigest(), _BYTES: str(hashed.tell())})

    files.write_whole(tar_uri, fill)
    files.write_whole(index_uri, _parquet(_table(name, rows), facts))


def update_scores(folder: files.Uri, name: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Adds or replaces scores of a shard's clips in its index; the tar stays as it is. Clips that are not named keep theirs."""
    index_uri = _uris(folder, name)[1]
    table, facts = _index(index_uri), _facts(index_uri)
    ids = table["clip_id"].to_pylist()
    for score in sorted({score for found in scores.values() for score in found}):
        column = SCORE + score
        before = table[column].to_pylist() if column in table.column_names else [None] * len(ids)
        values = [scores.get(clip_id, {}).get(score, old) for clip_id, old in zip(ids, before)]
        table = table.drop_columns([column]) if column in table.column_names else table
        table = table.append_column(column, pa.array(values, pa.float32()))
    table = table.select([*INDEX.names, *sorted(set(table.column_names) - set(INDEX.names))])
    files.write_whole(index_uri, _parquet(table, {key: facts[key].decode() for key in (_FORMAT, _SHA256, _BYTES)}))


def is_committed(folder: files.Uri, name: str) -> bool:
    """Whether the shard's index is there, and a tar of the size that the index knows."""
    tar_uri, index_uri = _uris(folder, name)
    if not files.exists(index_uri):
        return False
    facts = _facts(index_uri)
    return files.exists(tar_uri) and files.size(tar_uri) == int(facts[_BYTES])


def verify(folder: files.Uri, name: str) -> None:
    """Reads all of a shard's tar. Raises ValueError if it is not the one that its index was written for."""
    tar_uri, index_uri = _uris(folder, name)
    with files.open_input(tar_uri) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _facts(index_uri)[_SHA256].decode():
        raise ValueError(f"{tar_uri}: its sha256 is not the one in its index")


def read_index(shards_uri: files.Uri) -> pa.Table:
    """All rows of all shards, in the order of the shards' names; scores that a shard does not have are null."""
    tables = list(iter_index(shards_uri))
    return pa.concat_tables(tables, promote_options="default") if tables else INDEX.empty_table()


def iter_index(shards_uri: files.Uri) -> Iterator[pa.Table]:
    """The index of one shard after the other, for runs whose index is larger than memory.

    `shards_uri` is a folder of shards, the folder of a run, or one tar. A tar whose index is not there is passed over in a folder;
    asked for by name, it raises ValueError, as an index of a newer format does.
    """
    folder, name = _place(shards_uri)
    if name is None:
        found = files.list_files(folder, (".parquet",))
        yield from (_index(uri) for uri in found if uri.rpartition("/")[0] == folder)
    elif files.exists(index_uri := _uris(folder, name)[1]):
        yield _index(index_uri)
    else:
        raise ValueError(f"{os.fspath(shards_uri)}: not committed: it has no index {name}.parquet")


def read_clips(shards_uri: files.Uri, parts: Collection[str] | None = None) -> Iterator[AnnotatedClip]:
    """Every annotated clip of a folder of shards, of a run's folder or of one tar; see `iter_index` and `read_clip`."""
    folder, _ = _place(shards_uri)
    for table in iter_index(shards_uri):
        for row in table.select(["clip_id", "status", "shard", "parts"]).to_pylist():
            if row["status"] == "annotated":
                yield read_clip(folder, row, parts)


def read_clip(root_uri: files.Uri, row: Row, parts: Collection[str] | None = None) -> AnnotatedClip:
    """The clip of an index row (root: the folder of shards) or of a selection row (root: the folder of the run).

    `parts` names slots (`rgb`, `motion`) or single members (`flow.forward`, `motion.dynamic`); None: all. What was not asked for is
    not read: see `decode`. Raises ValueError that names shard, clip and member.
    """
    try:
        return decode(row["clip_id"], read_members(root_uri, row, parts))
    except ValueError as error:
        shard = files.join(root_uri, row["shard"])
        raise error if str(error).startswith(shard) else ValueError(f"{shard}: {error}") from None


def read_members(root_uri: files.Uri, row: Row, parts: Collection[str] | None = None) -> dict[str, bytes]:
    """The bytes of the members asked for, and `json`, by suffix; neighbors are read at once."""
    uri = files.join(root_uri, row["shard"])
    wanted = sorted((p for p in row["parts"] or () if is_part(p["name"], parts)), key=lambda part: part["offset"])
    if not wanted:
        raise ValueError(f"{uri}: clip {row['clip_id']}: has no members, its status is {row.get('status')}")
    members: dict[str, bytes] = {}
    for group in _neighbors(wanted, REMOTE_GAP_BYTES if files.is_remote(uri) else LOCAL_GAP_BYTES):
        first = group[0]["offset"]
        data = files.read_up_to(uri, first, group[-1]["offset"] + group[-1]["size"] - first)
        for part in group:
            begin = part["offset"] - first
            member = data[begin : begin + part["size"]]  # of a lone member: data itself, not a copy
            if len(member) < part["size"]:
                raise ValueError(
                    f"{uri}: clip {row['clip_id']}: {part['name']} is torn: {len(member)} of {part['size']} bytes"
                )
            members[part["name"]] = member
    return members


def index_foreign(tar_uri: files.Uri) -> list[dict[str, Any]]:
    """Index rows of any WebDataset tar, found by walking its headers; only id, status, shard and parts are known.

    Raises ValueError for what is no tar, or is torn.
    """
    uri = os.fspath(tar_uri)
    rows: list[dict[str, Any]] = []
    with files.open_input(uri) as file:
        for info in _walk(uri, file):
            folder, _, base = info.name.rpartition("/")
            key, _, suffix = base.partition(".")
            clip_id = f"{folder}/{key}" if folder else key
            if not rows or rows[-1]["clip_id"] != clip_id:
                shard = uri.rpartition("/")[2]
                rows.append({"clip_id": clip_id, "status": "annotated", "reason": "", "shard": shard, "parts": []})
            rows[-1]["parts"].append({"name": suffix, "offset": info.offset_data, "size": info.size})
    return rows


def write_artifact(uri: files.Uri, clip_id: str, members: Members, row: Row) -> None:
    """One finished clip as one file, whole or absent: a tar of `row.json` and the members."""
    row_json = seal({"clip_id": clip_id, "row": dict(row), "crc32": checksums(members)})
    file = io.BytesIO()
    with _writer(file) as tar:
        _add(tar, _ROW, row_json)
        for suffix in ordered(members):
            _add(tar, f"{clip_id}.{suffix}", members[suffix])
    files.write_whole(uri, file.getvalue())


def read_artifact(uri: files.Uri) -> tuple[str, dict[str, bytes], dict[str, Any]]:
    """Clip id, members and row. Raises ValueError if any byte of them is not as it was written."""
    data = files.read_bytes(uri)
    found = {info.name: data[info.offset_data :][: info.size] for info in _walk(os.fspath(uri), io.BytesIO(data))}
    try:
        facts = unseal(found.pop(_ROW, b""))
    except ValueError as error:
        raise ValueError(f"{os.fspath(uri)}: {error}") from None
    clip_id = facts["clip_id"]
    members = {name.removeprefix(f"{clip_id}."): member for name, member in found.items()}
    sums = checksums(members)
    if bad := [suffix for suffix in facts["crc32"] if sums.get(suffix) != facts["crc32"][suffix]]:
        raise ValueError(f"{os.fspath(uri)}: clip {clip_id}: {', '.join(bad)} torn or corrupt")
    return clip_id, members, facts["row"]


class _Hashed:
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._position, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self._position += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._position


def _writer(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


def _added(tar: tarfile.TarFile, shard: str, items: Iterable[tuple[str, Members, Row]]) -> Iterator[Row]:
    """Adds the items to the tar and yields their rows, complete."""
    seen: set[str] = set()
    for clip_id, members, row in items:
        if clip_id in seen or "." in clip_id:
            raise ValueError(f"{shard}: clip id {clip_id!r} is there twice or holds a dot")
        seen.add(clip_id)
        parts = [
            {"name": suffix, "offset": _add(tar, f"{clip_id}.{suffix}", members[suffix]), "size": len(members[suffix])}
            for suffix in ordered(members)
        ]
        yield {**row, "clip_id": clip_id, "format": FORMAT, "shard": f"{shard}.tar", "parts": parts}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member that says nothing of when, where and by whom; returns its first byte's offset."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid 0, mode 0644, no names: tarfile's defaults, stated by a test
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset


def _walk(uri: str, file: Any) -> Iterator[tarfile.TarInfo]:
    """Every regular file of a tar. tarfile itself ends silently at a header that it cannot read, and at a torn last member."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.offset_data + info.size > length:
                    raise ValueError(f"{uri}: {info.name} is torn: the tar ends within it")
                if info.isfile():
                    yield info
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise ValueError(f"{uri}: corrupt: no tar header at byte {tar.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"{uri}: no whole tar: {error}") from None


def _neighbors(parts: list[Row], gap: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for part in parts:
        if groups and part["offset"] - (groups[-1][-1]["offset"] + groups[-1][-1]["size"]) <= gap:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _uris(folder: files.Uri, name: str) -> tuple[str, str]:
    return files.join(folder, f"{name}.tar"), files.join(folder, f"{name}.parquet")


def _place(shards_uri: files.Uri) -> tuple[str, str | None]:
    """The folder of shards, and the name of the shard if one was asked for."""
    uri = os.fspath(shards_uri).rstrip("/")
    uri = files.split(uri)[1] if uri.startswith("file://") else uri
    if uri.endswith(".tar"):
        folder, _, base = uri.rpartition("/")
        return folder or ".", base.removesuffix(".tar")
    inner = files.join(uri, "shards")
    if files.exists(inner):
        return inner, None
    if not files.exists(uri):
        raise files.NotFound(f"{uri}: no such folder of shards")
    return uri, None


def _table(shard: str, rows: list[Row]) -> pa.Table:
    names = {name for row in rows for name in row}
    scores = sorted(name for name in names if name.startswith(SCORE))
    if strange := names - set(INDEX.names) - set(scores):
        raise ValueError(f"{shard}: unknown index columns {', '.join(sorted(strange))}")
    schema = pa.schema([*INDEX, *(pa.field(name, pa.float32()) for name in scores)])
    columns = {}
    for field in schema:
        try:
            columns[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(f"{shard}: index column {field.name}: {error}") from None
    return pa.table(columns, schema=schema)


def _parquet(table: pa.Table, facts: Mapping[bytes, str]) -> bytes:
    from pyarrow import parquet  # not at the top: 0.2 s that encoding does not need

    sink = io.BytesIO()
    table = table.replace_schema_metadata(facts)
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _index(uri: str) -> pa.Table:
    from pyarrow import parquet

    data = files.read_bytes(uri)
    _facts(uri, data)
    try:
        table = parquet.read_table(pa.BufferReader(data), page_checksum_verification=True).replace_schema_metadata()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri}: a torn or corrupt index: {' '.join(str(error).split())}") from None
    for place, field in enumerate(INDEX):
        if field.name not in table.column_names:  # written before there was such a column
            table = table.add_column(place, field, pa.nulls(len(table), field.type))
    return table


def _facts(uri: str, data: bytes | None = None) -> dict[bytes, bytes]:
    """What the index says of itself and its tar. Raises ValueError for a newer format and for what is no index."""
    from pyarrow import parquet

    try:
        facts = parquet.read_schema(pa.BufferReader(files.read_bytes(uri) if data is None else data)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri}: a torn or corrupt index: {' '.join(str(error).split())}") from None
    if not {_FORMAT, _SHA256, _BYTES} <= set(facts):
        raise ValueError(f"{uri}: no index of a shard")
    if int(facts[_FORMAT]) > FORMAT:
        raise ValueError(
            f"{uri}: written in format {int(facts[_FORMAT])}, this worldreel reads up to {FORMAT}: update it"
        )
    return facts
