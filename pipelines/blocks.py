"""A block under work: its videos and their clips, and where each stands."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines import spool
from pipelines.fleet_knobs import Fleet
from pipelines.ledger import Event, Standing, note
from pipelines.plan import Block
from pipelines.reuse import Earlier
from pipelines.sources import Entry
from pipelines.tasks import Task
from shared import files

_CUT_BYTES = 512 << 20
"""A decoder and its frames; cutting streams."""
_PACK_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every block of a run shares."""

    spool: str
    shards: str
    fleet: Fleet
    clip_bytes: int
    """An estimate of what annotating one clip holds in memory."""
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Runs that this one takes over from, with the headers of their plans."""


@dataclass(kw_only=True)
class Unit:
    """A video or clip of the block, or its packing."""

    task: Task
    uri: str
    """Of the video."""
    standing: Standing
    finished: bool = False
    """Its file is in the spool (or it was packed)."""


@dataclass
class OpenBlock:
    """One block from its first task to its commit."""

    block: Block
    settings: Settings
    units: dict[str, Unit] = field(default_factory=dict)
    _entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def folder(self) -> str:
        return files.join(self.settings.spool, self.name)

    def resume(self, standings: dict[str, Standing]) -> list[Task]:
        """Takes up what earlier runs left in spool and ledger; what is to do now."""
        found: set[str] = set()
        if files.exists(self.folder):
            files.sweep(self.folder)
            found = {uri.rpartition("/")[2] for uri in files.list_files(self.folder)}
        for entry in self.block.entries:
            key = spool.video_key(entry.uri)
            self._entries[key] = entry
            body = {"entry": asdict(entry), "to": spool.cut_uri(self.folder, key)}
            task = self._task("cut", key, body, self.settings.fleet.video_timeout_s, _CUT_BYTES)
            self._add(task, entry.uri, standings, found)
        for key in [key for key in self._entries if self.units[key].finished]:
            self._add_clips(key, standings, found)
        return [unit.task for unit in self.units.values() if _open(unit)]

    def finish(self, key: str) -> list[Task]:
        """One unit's file is there; what is to do next."""
        unit = self.units[key]
        unit.finished = True
        if unit.task.kind != "cut":
            return []
        known = set(self.units)
        self._add_clips(key, {}, set())
        return [unit.task for name, unit in self.units.items() if name not in known and _open(unit)]

    def slips(self, key: str) -> list[spool.Slip]:
        """The clips of a video that was cut."""
        return spool.read_slips(spool.cut_uri(self.folder, key))

    def note(self, event: Event) -> Standing:
        """Takes one more event of the ledger into account."""
        standing = self.units[event["key"]].standing
        note(standing, event)
        return standing

    @property
    def spooled_bytes(self) -> int:
        """Of artifacts that wait for the rest of the block."""
        ends = (unit.standing.end for unit in self.units.values() if unit.finished)
        return sum(end.get("bytes", 0) for end in ends if end is not None)

    @property
    def packing(self) -> bool:
        """True: the packing was asked for."""
        return self.name in self.units

    @property
    def complete(self) -> bool:
        """True: every clip is annotated, screened out or failed; the block can be packed."""
        return not any(_open(unit) for unit in self.units.values() if unit.task.kind != "pack")

    def pack_task(self) -> Task:
        """Writes the shards."""
        failed = {
            key: unit.standing.end.get("reason", "")
            for key, unit in self.units.items()
            if unit.standing.end is not None and not unit.finished
        }
        body = {
            "block": self.name,
            "folder": self.folder,
            "shards_uri": self.settings.shards,
            "videos": [{"key": key, **asdict(entry)} for key, entry in self._entries.items()],
            "failed": failed,
            "clips_per_shard": self.settings.fleet.clips_per_shard,
        }
        task = self._task("pack", self.name, body, self.settings.fleet.video_timeout_s, _PACK_BYTES)
        self.units[self.name] = Unit(task=task, uri=self.name, standing=Standing(kind="pack"))
        return task

    def _add_clips(self, key: str, standings: dict[str, Standing], found: set[str]) -> None:
        entry = self._entries[key]
        for number, slip in enumerate(self.slips(key)):
            if slip.reason:
                continue
            body = {
                "dataset": entry.dataset,
                "cut_uri": spool.cut_uri(self.folder, key),
                "number": number,
                "to": spool.clip_uri(self.folder, slip.clip_id),
            }
            if (earlier := self._earlier()) is not None:
                body["earlier"] = asdict(earlier)
            timeout = self.settings.fleet.clip_timeout_s
            task = self._task("clip", slip.clip_id, body, timeout, self.settings.clip_bytes)
            self._add(task, entry.uri, standings, found)

    def _earlier(self) -> Earlier | None:
        """The same block of the run that is taken over from."""
        for run, header in self.settings.earlier.items():
            block = f"{run}-{self.name.rpartition('-')[2]}"
            knobs, version = header["knobs"], header["version"]
            return Earlier(shards_uri=self.settings.shards, block=block, knobs=knobs, version=version)
        return None

    def _add(self, task: Task, uri: str, standings: dict[str, Standing], found: set[str]) -> None:
        standing = standings.get(task.key) or Standing(kind=task.kind)
        there = task.body["to"].rpartition("/")[2] in found
        self.units[task.key] = Unit(task=task, uri=uri, standing=standing, finished=there)

    def _task(self, kind: Any, key: str, body: dict[str, Any], timeout_s: float, num_bytes: int) -> Task:
        return Task(kind=kind, key=key, block=self.name, body=body, timeout_s=timeout_s, num_bytes=num_bytes)


def _open(unit: Unit) -> bool:
    return not unit.finished and (unit.standing.end is None or unit.standing.end["event"] == "done")
