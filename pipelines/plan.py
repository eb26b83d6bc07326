"""The plan: which videos make which block, written down before work so that a bucket that changes meanwhile changes nothing.

`OUT/plan/RUN-000000.jsonl` and so on: a header line, then one line a video. A listing is pinned in pieces, and read again when all
pieces are worked off: what is new then becomes a further piece. Nothing that was planned is ever planned anew.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import yaml

from pipelines.sources import Entry, entries
from shared import files
from shared.knobs import Knobs

PIECE_VIDEOS = 10_000
_FORMAT = 1
VERSION = 1
"""Of the annotators' arithmetic: raised when a change of code changes labels."""
_WITHOUT = {"fleet"}
"""Knobs that change no label and no byte of one."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Videos that are committed together."""

    name: str
    """Run and number: the stem of its shards."""
    entries: tuple[Entry, ...]


def digest(value: Any, size: int = 16) -> str:
    """Hex of anything JSON can say."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def label_knobs(recipe: Knobs) -> dict[str, Any]:
    """The part of a recipe on which labels depend."""
    return _labeling(recipe.model_dump(mode="json"))


def _labeling(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: knobs for name, knobs in recipe.items() if name not in _WITHOUT and knobs is not None}


def run_name(source: str, recipe: Knobs) -> str:
    """The same source and recipe give the same names, so the same bytes."""
    return digest([source, label_knobs(recipe)], size=5)


class Plan:
    """The pinned part of a listing, and the rest of it on demand."""

    def __init__(
        self,
        out: str,
        source: str,
        run: str,
        recipe: Knobs,
        block_videos: int,
        limit: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises if this driver may write no more; it is asked before each piece."""
        self._folder, self._source, self.run = files.join(out, "plan"), source, run
        self._dataset = getattr(recipe, "source", None)
        self._recipe, self._block_videos, self._limit = _facts(recipe), block_videos, limit
        self._pieces = _pieces(out, run)
        self._check = check
        self._known = np.empty(0, np.uint64)
        self._num_blocks = 0
        self._rest: Iterator[Entry] | None = None
        for uri in self._pieces:
            hashes, last_block = [], -1
            for block, entry in _read(uri):
                hashes.append(_hash(entry.uri))
                last_block = block
            self._know(hashes)
            self._num_blocks = max(self._num_blocks, last_block + 1)

    @property
    def num_videos(self) -> int:
        """Planned so far."""
        return len(self._known)

    def blocks(self) -> Iterator[Block]:
        """Every block in order; pins further pieces of the listing as they are asked for."""
        for number in itertools.count():
            if number == len(self._pieces) and not self.pin():
                return
            for block, rows in itertools.groupby(_read(self._pieces[number]), key=lambda row: row[0]):
                yield Block(name=f"{self.run}-{block:06d}", entries=tuple(entry for _, entry in rows))

    def pin(self) -> bool:
        """Writes the next piece of the listing down; False: the listing holds nothing new."""
        if self._rest is None:
            self._rest = entries(self._source, self._dataset)
        room = PIECE_VIDEOS if self._limit is None else min(PIECE_VIDEOS, self._limit - self.num_videos)
        fresh = list(itertools.islice(self._new(self._rest), max(room, 0)))
        if not fresh:
            return False
        uri = f"{self._folder}/{self.run}-{len(self._pieces):06d}.jsonl"
        header = {"format": _FORMAT, "source": self._source, "run": self.run, **self._recipe}
        lines = [header, *(self._line(number, entry) for number, entry in enumerate(fresh))]
        self._check()  # listing may take long
        _write(uri, lines)
        self._num_blocks += -(-len(fresh) // self._block_videos)
        self._pieces.append(uri)
        self._know([_hash(entry.uri) for entry in fresh])
        return True

    def _line(self, number: int, entry: Entry) -> dict[str, Any]:
        block = self._num_blocks + number // self._block_videos
        facts = asdict(entry)
        return {"block": block, **{name: value for name, value in facts.items() if name != "scores" or value}}

    def _new(self, listing: Iterable[Entry]) -> Iterator[Entry]:
        """What is not planned yet; of a video listed twice, the first."""
        seen: set[int] = set()
        for entry in listing:
            key = _hash(entry.uri)
            place = np.searchsorted(self._known, np.uint64(key))
            if key in seen or (place < len(self._known) and self._known[place] == key):
                continue
            seen.add(key)
            yield entry

    def _know(self, hashes: list[int]) -> None:
        self._known = np.union1d(self._known, np.array(hashes, np.uint64))


def runs(out: str) -> dict[str, dict[str, Any]]:
    """The runs that OUT holds, by name, with the header of their plan: one, or two while a recipe takes over from another."""
    found: dict[str, dict[str, Any]] = {}
    for uri in _pieces(out):
        header = _header(uri)
        found.setdefault(header["run"], header)
    return found


def adopt(out: str, old: str, run: str, recipe: Knobs) -> None:
    """The same blocks of the same videos, under another recipe."""
    for uri in _pieces(out, old):
        header = _header(uri) | {"run": run, **_facts(recipe)}
        lines = [{"block": block, **asdict(entry)} for block, entry in _read(uri)]
        _write(uri.replace(f"/plan/{old}-", f"/plan/{run}-"), [header, *lines])


def remove(out: str, run: str) -> None:
    """Forgets a run."""
    for uri in _pieces(out, run):
        files.remove(uri)


def current(out: str) -> str | None:
    """The run that OUT's recipe.yaml belongs to; None: there is none."""
    found = runs(out)
    if not found:
        return None
    recipe = yaml.safe_load(files.read_bytes(files.join(out, "recipe.yaml")))
    mine = digest(_labeling(recipe))
    return next((name for name, header in found.items() if header["recipe"] == mine), None)


def size(out: str, run: str) -> tuple[int, int]:
    """How many videos and blocks a run has planned so far."""
    videos, last = 0, -1
    for uri in _pieces(out, run):
        lines = files.read_bytes(uri).splitlines()
        videos, last = videos + len(lines) - 1, json.loads(lines[-1])["block"]
    return videos, last + 1


def _pieces(out: str, run: str = "") -> list[str]:
    folder = files.join(out, "plan")
    uris = sorted(files.list_files(folder, (".jsonl",))) if files.exists(folder) else []
    return [uri for uri in uris if uri.rpartition("/")[2].startswith(run)]


def _facts(recipe: Knobs) -> dict[str, Any]:
    """Of the recipe: its digest, its knobs, and the version of the code, for a later one that takes over."""
    knobs = label_knobs(recipe)
    return {"recipe": digest(knobs), "knobs": knobs, "version": VERSION}


def _write(uri: str, lines: list[dict[str, Any]]) -> None:
    files.write_whole(uri, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _header(uri: str) -> dict[str, Any]:
    with files.open_input(uri) as file:
        header = json.loads(file.readline())
    if (found := header.get("format")) != _FORMAT:
        raise ValueError(f"{uri}: a plan of format {found}, expected {_FORMAT}")
    return header


def _read(uri: str) -> Iterator[tuple[int, Entry]]:
    for line in files.read_bytes(uri).splitlines()[1:]:
        row = json.loads(line)
        yield row.pop("block"), Entry(**row)


def _hash(uri: str) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "little")
