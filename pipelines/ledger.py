"""The ledger: what was tried, on which attempt, and what came of it. Written before the work, read after a crash.

One file a block and writer, `OUT/ledger/BLOCK.WRITER.jsonl`, lines only ever appended. In a bucket every batch of lines is an
immutable object of its own; they are united when the block is committed. A torn last line is what a killed writer leaves: it is
ignored.
"""

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from shared import files

Event = Mapping[str, Any]

_EVENTS_S = 10.0
_runs = itertools.count()
_BATCH = re.compile(r"-\d{6}\.jsonl$")


def writer_name() -> str:
    """Unique to one run of one process on one machine."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
    return f"{host}-{os.getpid()}-{int(time.time() * 1000):x}-{next(_runs)}"


class Lines:
    """JSON lines under one name: a file that grows, or, in a bucket, numbered objects until they are united."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.removesuffix(".jsonl")
        self._bucket = files.is_remote(uri)
        self._file: IO[bytes] | None = None
        self._batches: list[bytes] = []

    def append(self, events: Iterable[Event]) -> None:
        """Returns when the lines survive the death of this process."""
        lines = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)
        if self._bucket:
            files.write_whole(f"{self._uri}-{len(self._batches):06d}.jsonl", lines)
            self._batches.append(lines)
            return
        if self._file is None:
            os.makedirs(os.path.dirname(self._uri), exist_ok=True)
            self._file = open(f"{self._uri}.jsonl", "ab", buffering=0)  # noqa: SIM115
        self._file.write(lines)

    def close(self) -> None:
        """Nothing more will be appended."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        if len(self._batches) > 1:
            files.write_whole(f"{self._uri}.jsonl", b"".join(self._batches))
            for number in range(len(self._batches)):
                files.remove(f"{self._uri}-{number:06d}.jsonl")
        self._batches = []


@dataclass(kw_only=True)
class Standing:
    """Where one video, clip or block stands."""

    kind: str
    begun: int = 0
    """Ever."""
    attempts: int = 0
    """Begun and neither done, given back nor forgiven: a driver that died with one has used it."""
    lost: int = 0
    """Attempts that a vanished machine took along."""
    suspected: bool = False
    """It was in flight beside others when their worker died: whether it is to blame shows when it is tried alone."""
    end: Event | None = None
    """done, failed or quarantined; None: still to do."""


def standings(events: Iterable[Event]) -> dict[str, Standing]:
    """What a block's events come to, by key."""
    found: dict[str, Standing] = {}
    for event in events:
        if "key" not in event:
            continue
        standing = found.setdefault(event["key"], Standing(kind=event.get("kind", "")))
        note(standing, event)
    return found


def note(standing: Standing, event: Event) -> None:
    """One event more."""
    match event["event"]:
        case "started":
            standing.begun += 1
            standing.attempts += 1
        case "returned":
            standing.attempts -= 1
            standing.suspected = standing.suspected or bool(event.get("beside"))
        case "fault" if event["class"] == "node_lost":
            standing.attempts -= 1
            standing.lost += 1
        case "done":
            standing.attempts, standing.lost, standing.end = 0, 0, event
        case "failed" | "quarantined":
            standing.end = event
        case "forgiven":
            standing.attempts, standing.lost, standing.end = 0, 0, None


class Ledger:
    """This writer's part of a run's ledger, and everybody's when reading."""

    def __init__(self, out: str) -> None:
        self._folder = files.join(out, "ledger")
        self._writer = writer_name()
        self._open: dict[str, Lines] = {}

    def write(self, block: str, events: list[Event]) -> None:
        """Appends, with the time. `block` is the stem of its shards: run and number."""
        if block not in self._open:
            self._open[block] = Lines(f"{self._folder}/{block}.{self._writer}.jsonl")
        now = round(time.time(), 3)
        self._open[block].append({"time": now, **event} for event in events)

    def close(self, block: str | None = None) -> None:
        """The block (or all) is done with."""
        for name in [block] if block else list(self._open):
            if name in self._open:
                self._open.pop(name).close()


class Events:
    """OUT/events.jsonl: every change of state, for people and dashboards. In a bucket OUT/events/*.jsonl, every few seconds."""

    def __init__(self, out: str) -> None:
        self._bucket = files.is_remote(out)
        self._lines = Lines(
            files.join(out, *(("events", f"{writer_name()}.jsonl") if self._bucket else ("events.jsonl",)))
        )
        self._waiting: list[Event] = []
        self._sent = time.monotonic()

    def say(self, event: str, **facts: Any) -> None:
        """One line, with the time."""
        self._waiting.append({"time": round(time.time(), 3), "event": event, **facts})
        if not self._bucket or time.monotonic() - self._sent > _EVENTS_S:
            self._send()

    def close(self) -> None:
        if self._waiting:
            self._send()
        self._lines.close()

    def _send(self) -> None:
        self._lines.append(self._waiting)
        self._waiting, self._sent = [], time.monotonic()


def read(out: str) -> Iterator[tuple[str, list[Event]]]:
    """Every block's name and events, all writers' in the order of time."""
    folder = files.join(out, "ledger")
    if not files.exists(folder):
        return
    names = sorted(files.list_files(folder, (".jsonl",)))
    for block, uris in itertools.groupby(names, key=lambda uri: uri.rpartition("/")[2].split(".")[0]):
        yield block, read_block(uris)


def read_block(uris: Iterable[str]) -> list[Event]:
    """Events of several writers, in the order of time. Batches that were united but not yet removed count once."""
    uris = list(uris)
    whole = {uri.removesuffix(".jsonl") for uri in uris}
    events: list[Event] = []
    for uri in uris:
        if _BATCH.sub("", uri) not in whole:
            events += _parsed(uri, files.read_bytes(uri))
    return sorted(events, key=lambda event: event["time"])


def remove_run(out: str, run: str) -> None:
    """Forgets what a run tried."""
    folder = files.join(out, "ledger")
    for uri in list(files.list_files(folder, (".jsonl",))):
        if uri.rpartition("/")[2].startswith(f"{run}-"):
            files.remove(uri)


def _parsed(uri: str, text: bytes) -> Iterator[Event]:
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise ValueError(
                    f"{uri}: line {number} is not JSON, expected an event; the ledger was damaged"
                ) from None
