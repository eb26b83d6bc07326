"""SOURCE, as a stream of entries: a video, a folder, a glob, a list (.txt, .csv, .parquet), on disk or in a bucket.

A million entries never lie in memory; their order is fixed, since blocks are cut from it.
"""

import csv
import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from annotate.datasets.dataset import Dataset, Footage, place_below
from pipelines import datasets
from shared import files
from shared.index import SCORE

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".flv", ".wmv", ".ogv", ".mxf"),
)
_LISTS = (".txt", ".csv", ".parquet")
_COLUMNS = ("uri", "path", "video", "file", "url")
"""Of a list, the first of these that it has names the video."""
_SCORES = ("aesthetic", "clip_score", "text_area")
"""Columns of a list that are scores, which others' models gave; any other score's column is named `score.NAME`."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to annotate, before anything of it was opened."""

    uri: str
    caption: str = ""
    licence: str = ""
    dataset: str = "video"
    """What it is: a video, or a scene of a data set of this kind."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """That the list gives, of every clip of the video: `curate` judges them like those that were measured."""
    place: str = ""
    """Of a scene: its folders below SOURCE, by which it may be left out."""


def entries(source: str, knobs: Dataset | Footage | None = None) -> Iterator[Entry]:
    """The entries of SOURCE in a fixed order; `knobs` are those of its data set, None: its defaults.

    Raises ValueError, one sentence, where there is nothing to list."""
    if (dataset := datasets.split(source)) is not None:
        return _scenes(source, knobs or datasets.DATASETS[dataset[0]], dataset[1])
    source = absolute(source)
    if source.lower().endswith(_LISTS) and files.exists(source) and not files.is_folder(source):
        found = _listed(source)
    else:
        suffixes = VIDEO_SUFFIXES if files.is_folder(source) or not files.exists(source) else ()
        found = (Entry(uri=uri) for uri in files.list_files(source, suffixes))
    first = next(found, None)
    if first is None:
        raise ValueError(f"{source}: holds no video, expected one at least ({', '.join(VIDEO_SUFFIXES[:5])}, ...)")
    return itertools.chain((first,), found)


def canonical(source: str) -> str:
    """SOURCE as the plan remembers it: from the root of the disk, a data set's name before it."""
    dataset = datasets.split(source)
    return absolute(source) if dataset is None else f"{dataset[0]}:{_place(*dataset)}"


def _place(kind: str, root: str) -> str:
    return root if datasets.is_made(kind) else absolute(root)


def _scenes(source: str, dataset: Dataset | Footage, root: str) -> Iterator[Entry]:
    """One entry a scene."""
    licence, kind = dataset.licence, dataset.kind
    top = _place(kind, root)
    found = (
        Entry(uri=uri, licence=licence, dataset=kind, place=place_below(top, uri))
        for uri in datasets.scenes(dataset, top)
    )
    first = next(found, None)
    if first is None:
        asked = f" that `only` names ({', '.join(only)})" if (only := getattr(dataset, "only", ())) else ""
        raise ValueError(f"{source}: holds no scene of {dataset.about.title}{asked}, expected {dataset.about.layout}")
    return itertools.chain((first,), found)


def absolute(uri: str) -> str:
    """Local paths from the root of the disk, without `file://`; buckets as they are."""
    if uri.startswith("file://"):
        uri = unquote(urlsplit(uri).path)
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _listed(uri: str) -> Iterator[Entry]:
    """Rows of a list; relative paths start at the list's folder."""
    folder = uri.rpartition("/")[0]
    read = {".txt": _text_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[os.path.splitext(uri.lower())[1]]
    for row in read(uri):
        name = next((row[column] for column in _COLUMNS if row.get(column)), None)
        if name is None:
            raise ValueError(
                f"{uri}: a row has none of the columns {', '.join(_COLUMNS)}, expected one that names the video"
            )
        name = str(name)
        where = name if "://" in name or name.startswith("/") else f"{folder}/{name}"
        licence = row.get("licence") or row.get("license") or ""
        caption, scores = str(row.get("caption") or ""), _scores(uri, row)
        yield Entry(uri=absolute(where), caption=caption, licence=str(licence), scores=scores)


def _score_of(column: str) -> str | None:
    """The score that a column gives; None: it gives none."""
    return column if column in _SCORES else column.removeprefix(SCORE) if column.startswith(SCORE) else None


def _scores(uri: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Cells that are empty, null or NaN give no score. Raises ValueError for what is no number."""
    found = {}
    for column, value in row.items():
        if (name := _score_of(column)) is None or value is None or value == "":
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{uri}: column {column} holds {value!r}, expected a number") from None
        if math.isfinite(number):
            found[name] = number
    return found


def _text_rows(uri: str) -> Iterator[Mapping[str, Any]]:
    with _text(uri) as lines:
        for line in lines:
            if (name := line.strip()) and not name.startswith("#"):
                yield {"uri": name}


def _csv_rows(uri: str) -> Iterator[Mapping[str, Any]]:
    with _text(uri) as lines:
        rows = csv.DictReader(lines)
        if not set(_COLUMNS) & set(rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ()) or "nothing"
            raise ValueError(f"{uri}: its first line names {found}, expected a column {' or '.join(_COLUMNS)}")
        yield from rows


def _parquet_rows(uri: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_input(uri) as stream:
        try:
            table = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{uri}: not a Parquet file ({_short(error)})") from None
        known = (*_COLUMNS, "caption", "licence", "license")
        wanted = [c for c in table.schema_arrow.names if c in known or _score_of(c) is not None]
        if not set(_COLUMNS) & set(wanted):
            found = ", ".join(table.schema_arrow.names)
            raise ValueError(f"{uri}: its columns are {found}, expected a column {' or '.join(_COLUMNS)}")
        for batch in table.iter_batches(batch_size=4096, columns=wanted):
            yield from batch.to_pylist()


def _text(uri: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(files.open_input(uri), encoding="utf-8-sig", newline="")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
