"""From positions of the stream to batches: the bytes a stage needs, fetched ahead by threads, decoded by worker processes.

Where a window's latents are known (`train.latent_cache`), its pixels and flow are neither read nor decoded.

Nothing here has a state to save: item i of a rank is a pure function of i, workers only decide when it is made. So their number may
change between any two starts, and starting in the middle costs nothing.
"""

import hashlib
import os
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from shared import shards, trust
from shared.clip import KEY_STRIDE, AnnotatedClip
from train import encoded, foreign
from train.latent_cache import Known, LatentCache
from train.noise import generator
from train.recipe import Reading
from train.sample import Batch, Sample, collate, from_clip, placeholder
from train.stages import STAGES
from train.stream import Draw, Stream

Members = dict[str, bytes]
Kept = dict[tuple[int, str], Sample]
"""Samples by the row of their clip and their size."""
CORRUPT = (ValueError, OSError)
"""What bad data raises. Anything else is a fault of the program and stops it."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A sample that could not be read; a placeholder of weight 0 took its place."""

    position: int
    clip_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A batch, where its samples stand in the stream, and what of it could not be read."""

    batch: Batch
    positions: tuple[int, ...]
    failures: tuple[Failure, ...]

    def pin_memory(self) -> "Loaded":
        """In page-locked memory, from which a GPU copies while it computes. The loader calls it."""
        return replace(self, batch=self.batch.mapped(Tensor.pin_memory))


class Cache:
    """Members of clips on a local disk, each clip one whole file; the longest unused go when there are too many bytes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._written = max_bytes  # bytes since the last look at the folder: look at the first chance
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Members | None:
        """The members, if they are there and whole."""
        path = self.folder / name
        try:
            members = shards.read_artifact(path)[1]
            os.utime(path)
        except CORRUPT:
            return None
        return members

    def put(self, name: str, clip_id: str, members: Mapping[str, bytes]) -> None:
        shards.write_artifact(self.folder / name, clip_id, members, {})
        self._written += sum(map(len, members.values()))
        if self._written > self.max_bytes // 16:
            self._written = 0
            self._evict()

    def _evict(self) -> None:
        found = []
        for path in self.folder.glob("*.clip"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process evicts as well
            found.append((stat.st_mtime_ns, stat.st_size, path))
        kept = 0
        for _, num_bytes, path in sorted(found, reverse=True):
            kept += num_bytes
            if kept > self.max_bytes:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fetched:
    """The bytes of a sample."""

    members: Members
    name: str = ""
    """Of its latents in the cache; empty where there is none."""
    known: Known | None = None
    """The latents, if they are there: the members are then those that are needed beside them."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The members of a clip that are read."""

    parts: frozenset[str]
    beside_latents: frozenset[str] = frozenset()
    """Where the latents are known."""

    @classmethod
    def of(cls, stages: Sequence[STAGES], stream: Stream) -> "Wanted":
        """What stages ask for, and what the gates on their labels do."""
        gates = stream.gates.parts
        whole = frozenset[str]().union(*(stage.parts for stage in stages))
        few = frozenset[str]().union(*(stage.parts_beside_latents for stage in stages))
        return cls(parts=whole | gates, beside_latents=few | gates if few else few)


class Fetcher:
    """Bytes of members, by range, from shards or from the cache in front of them. Threads may share it."""

    def __init__(self, root: str, wanted: Wanted, knobs: Reading, latents: LatentCache | None = None) -> None:
        self.root, self.wanted, self.latents = root, wanted, latents
        self.cache = Cache(Path(knobs.cache), int(knobs.cache_gb * 2**30)) if knobs.cache else None

    def __call__(self, draw: Draw, row: Mapping[str, Any], start: int = 0) -> Fetched | Exception:
        """What the window from frame `start` on asks for, or why it cannot be had."""
        try:
            return self._fetched(draw, row, start)
        except CORRUPT as error:
            return error

    def everything(self, row: Mapping[str, Any], found: Fetched) -> Fetched | Exception:
        """As if the latents were not known."""
        try:
            return Fetched(members=self._read(row, self.wanted.parts), name=found.name)
        except CORRUPT as error:
            return error

    def _fetched(self, draw: Draw, row: Mapping[str, Any], start: int) -> Fetched:
        if self.latents is None:
            return Fetched(members=self._read(row, self.wanted.parts))
        record = self._read(
            row, frozenset()
        )  # `json` alone, which has the checksums of all others; all of a foreign sample
        name = self.latents.name(record, start, draw.size)
        known = self.latents.read(name)
        parts = self.wanted.parts if known is None else self.wanted.beside_latents
        if parts and not draw.foreign:
            record = self._read(row, parts)
        return Fetched(members=record, name=name, known=known)

    def _read(self, row: Mapping[str, Any], wanted: frozenset[str]) -> Members:
        parts = None if row["work_key"] == foreign.WORK_KEY else tuple(sorted(wanted))
        if self.cache is None:
            return shards.read_members(self.root, row, parts)
        identity = repr((self.root, parts, row["shard"], row["clip_id"], row["work_key"], row["parts"]))
        name = f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.clip"
        members = self.cache.get(name)
        if members is None:
            members = shards.read_members(self.root, row, parts)
            self.cache.put(name, row["clip_id"], members)
        return members


class Samples(Dataset):
    """A rank's micro-batches, map-style: item i is micro-batch i of those from `first_step` to `last_step`."""

    def __init__(
        self,
        stream: Stream,
        root: str,
        wanted: Wanted,
        knobs: Reading,
        *,
        first_step: int,
        last_step: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        kept: Kept | None = None,
        latents: LatentCache | None = None,
    ) -> None:
        """With `knobs.keep`, samples are kept on `device`, in `kept`: theirs were read with the same parts, if any are in it."""
        self.stream, self.knobs, self.device = stream, knobs, device
        self._kept: Kept = {} if kept is None else kept
        self.first_step, self.micro_batch, self.rank, self.world = first_step, micro_batch, rank, world
        self.per_step = stream.batch // world // micro_batch
        self.length = (last_step - first_step) * self.per_step
        self._fetcher = Fetcher(root, wanted, knobs, None if knobs.keep else latents)
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: dict[int, list[Future[Fetched | Exception]]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> Loaded:
        if self.knobs.keep:
            return _loaded(draws := self._draws(item), [self._remembered(draw) for draw in draws])
        self._fetch_ahead(item)
        return _load(self.stream, self._draws(item), [f.result() for f in self._under_way.pop(item)], self._fetcher)

    def _remembered(self, draw: Draw) -> tuple[Sample, Failure | None]:
        """From memory, if the clip was read before; a failure is not remembered."""
        known = draw.row, str(draw.size)
        if known not in self._kept:
            sample, failure = _sample(self.stream, draw, self._fetcher(draw, self.stream.row(draw)), start=0)
            sample = sample.to(self.device)
            if failure is not None:
                return sample, failure
            self._kept[known] = sample
        return self._kept[known], None

    def _draws(self, item: int) -> list[Draw]:
        step, micro = divmod(item, self.per_step)
        mine = self.stream.positions(self.first_step + step, self.rank, self.world)
        return [self.stream[position] for position in mine[micro * self.micro_batch : (micro + 1) * self.micro_batch]]

    def _fetch_ahead(self, item: int) -> None:
        """Starts reading this item and the next ones that this worker will be asked for."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.knobs.threads, thread_name_prefix="fetch")
        worker = get_worker_info()
        stride = worker.num_workers if worker else 1
        for later in range(item, min(item + (self.knobs.ahead + 1) * stride, self.length), stride):
            if later not in self._under_way:
                draws = self._draws(later)
                self._under_way[later] = [
                    self._pool.submit(
                        self._fetcher, draw, row := self.stream.row(draw), _start(self.stream.seed, draw, row)
                    )
                    for draw in draws
                ]


def read(stream: Stream, root: str, parts: Collection[str], knobs: Reading, positions: Collection[int]) -> Loaded:
    """The samples at these positions, now; latents that may be known are not used."""
    fetcher = Fetcher(root, Wanted(parts=frozenset({*parts, *stream.gates.parts})), knobs)
    draws = [stream[position] for position in positions]
    return _load(stream, draws, [fetcher(draw, stream.row(draw)) for draw in draws], fetcher)


def _load(stream: Stream, draws: list[Draw], found: list[Fetched | Exception], fetcher: Fetcher) -> Loaded:
    """The batch; its latents are used if those of all its samples are known, for a batch has one shape."""
    rows = [stream.row(draw) for draw in draws]
    known = [one.known for one in found if isinstance(one, Fetched) and one.known is not None]
    if known and len(known) < len(found):
        known = []
        found = [one if isinstance(one, Exception) else fetcher.everything(row, one) for one, row in zip(found, rows)]
    starts = [_start(stream.seed, draw, row) for draw, row in zip(draws, rows)]
    made = [_sample(stream, draw, one, start) for draw, one, start in zip(draws, found, starts, strict=True)]
    loaded = _loaded(draws, made)
    if known:
        return replace(loaded, batch=replace(loaded.batch, encoded=encoded.together([one.encoded for one in known])))
    if fetcher.latents is None:
        return loaded
    names = tuple("" if failed or isinstance(one, Exception) else one.name for one, (_, failed) in zip(found, made))
    return replace(loaded, batch=replace(loaded.batch, cache_names=names))


def _loaded(draws: list[Draw], made: list[tuple[Sample, Failure | None]]) -> Loaded:
    return Loaded(
        batch=collate([sample for sample, _ in made]),
        positions=tuple(draw.position for draw in draws),
        failures=tuple(failure for _, failure in made if failure is not None),
    )


def _sample(stream: Stream, draw: Draw, found: Fetched | Exception, start: int) -> tuple[Sample, Failure | None]:
    """The sample from frame `start` on, or a placeholder of weight 0 at the same position: skipping would shift all that follow."""
    size = (draw.size.frames, draw.size.height, draw.size.width)
    known = None if isinstance(found, Exception) else found.known
    first = None if known is None else known.first
    try:
        if isinstance(found, Exception):
            raise found
        clip = trust.narrowed(_clip(draw, found), stream.gates)
        sample = from_clip(clip, *size, start=start, first=first)
        if known is not None:
            sample = replace(sample, has_depth=known.has_depth, has_flow=known.has_flow)
        return sample, None
    except CORRUPT as error:
        failure = Failure(position=draw.position, clip_id=draw.clip_id, reason=str(error))
        return placeholder(*size, id=draw.clip_id, reason=failure.reason, first=first), failure


def _clip(draw: Draw, found: Fetched) -> AnnotatedClip:
    if not draw.foreign:
        return shards.decode(draw.clip_id, found.members)
    if found.known is None:
        return foreign.decode(draw.clip_id, found.members)
    return foreign.decode(draw.clip_id, found.members, pixels=False)


def _start(seed: int, draw: Draw, row: Mapping[str, Any]) -> int:
    """Where in a longer clip the sample begins: at any key frame, by the sample's own dice."""
    choices = (row["num_frames"] - draw.size.frames) // KEY_STRIDE + 1
    if choices <= 1:
        return 0
    dice = generator(seed, draw.position, "window")
    return KEY_STRIDE * int(torch.randint(choices, (), generator=dice))


def batches(samples: Samples, *, pin: bool = False) -> Iterator[Loaded]:
    """Micro-batches in order, made ahead by `workers` processes, or here without any."""
    workers = samples.knobs.workers
    ahead: dict[str, Any] = {}
    if workers:
        # Forking a process that holds threads and open connections can hang for ever: start afresh.
        ahead = {"multiprocessing_context": "spawn", "prefetch_factor": samples.knobs.prefetch}
    loader = DataLoader(
        samples,
        batch_size=None,
        sampler=range(len(samples)),
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=_deaf_to_signals,
        generator=torch.Generator(),  # its own: the loader draws a seed that nobody uses
        **ahead,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise ValueError(
            "a decoding worker died, perhaps for want of memory: run the same command again to go on, with fewer reading.workers"
        ) from error


def _as_is(loaded: Any) -> Any:
    return loaded


def _deaf_to_signals(_worker: int) -> None:
    """A signal to the whole group must not take the workers before the trainer has saved; they end when it does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
