"""What a worker does: cut and screen a video, annotate a clip, pack a block. Knows nothing of who calls it."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import cv2

from annotate import cut as cutting
from annotate.datasets.dataset import Dataset, Footage
from pipelines import datasets, packing, reuse, spool
from pipelines.plan import label_knobs
from pipelines.tasks import Task
from shared import shards, video
from shared.clip import AnnotatedClip


@runtime_checkable
class Annotators(Protocol):
    """All annotators of a recipe, loaded."""

    licences: set[str]

    def __call__(self, clip: AnnotatedClip, clock: "Clock") -> AnnotatedClip: ...


@runtime_checkable
class Supplier(Protocol):
    """Where clips come from. Data sets that bring truth are one more of these."""

    truth: str
    """The source of slots that are exact; "": none is."""

    def cut(self, entry: dict[str, Any], to: str) -> None:
        """Writes the spool's list of the entry's clips to this uri."""
        ...

    def load(self, cut_uri: str, number: int) -> AnnotatedClip:
        """One clip of that list, with its scores and, if the source brings any, its truth."""
        ...


class Videos:
    """Clips without labels, cut from videos."""

    truth = ""

    def __init__(self, recipe: Any) -> None:
        self._recipe = recipe

    def cut(self, entry: dict[str, Any], to: str) -> None:
        _cut_video(entry, to, self._recipe, entry["caption"], entry.get("scores", {}))

    def load(self, cut_uri: str, number: int) -> AnnotatedClip:
        span = spool.read_span(cut_uri, number)
        return AnnotatedClip.of(cutting.load_clip(span, self._recipe.cut), scores=span.scores)


class Scenes:
    """Clips of one data set, with the truth that it brings."""

    def __init__(self, dataset: Dataset, recipe: Any) -> None:
        self._dataset, self._cut, self.truth = dataset, recipe.cut, dataset.kind
        self._open = functools.lru_cache(maxsize=2)(self._dataset.open)

    def cut(self, entry: dict[str, Any], to: str) -> None:
        """Tests the scene and lists its clips. Raises ValueError with the reason if it is excluded or fails a test."""
        # not at the top: with torch, which a worker that only cuts videos never needs
        from annotate.datasets import importing, selfcheck

        self._dataset.refuse_excluded(entry["uri"], entry.get("place") or entry["uri"])
        scene = self._open(entry["uri"])
        spans = importing.spans(scene, self._cut, selfcheck.check(scene))
        spool.write_spans(to, entry["dataset"], importing.as_video(scene.facts, self._cut.fps), spans)

    def load(self, cut_uri: str, number: int) -> AnnotatedClip:
        from annotate.datasets import importing

        span = spool.read_span(cut_uri, number)
        return importing.load(self._open(span.video.uri), span, self._cut, self._dataset.kind)


class Filmed:
    """Clips cut from the real videos of a data set, with what it knows of them: estimates, as those of other videos."""

    truth = ""

    def __init__(self, dataset: Footage, recipe: Any) -> None:
        self._dataset, self._recipe = dataset, recipe

    def cut(self, entry: dict[str, Any], to: str) -> None:
        """Raises ValueError with the reason if the data set says that the video is not wanted, or could not be had."""
        self._dataset.refuse_excluded(entry["uri"], entry.get("place") or entry["uri"])
        note = self._dataset.describe(entry["uri"])
        _cut_video(entry, to, self._recipe, note.caption, note.scores)

    def load(self, cut_uri: str, number: int) -> AnnotatedClip:
        span = spool.read_span(cut_uri, number)
        clip = AnnotatedClip.of(cutting.load_clip(span, self._recipe.cut), scores=span.scores)
        return self._dataset.complete(clip, span.video)


def _cut_video(entry: dict[str, Any], to: str, recipe: Any, caption: str, scores: Mapping[str, float]) -> None:
    """Lists a video's clips; `scores` are known of all of them."""
    found = video.probe(entry["uri"], licence=entry["licence"], caption=caption, decoder=recipe.cut.decoder)
    spans = cutting.screen_and_cut(found, recipe.cut, recipe.screen)
    spans = [replace(span, scores={**span.scores, **scores}) for span in spans]
    spool.write_spans(to, entry["dataset"], spans[0].video if spans else found, spans)


def supplier(dataset: str, recipe: Any) -> Supplier:
    """Of the entries of this data set, or of videos."""
    if dataset == "video":
        return Videos(recipe)
    source = recipe.source
    if source is None or source.kind != dataset:
        source = datasets.DATASETS[dataset]
    return Filmed(source, recipe) if isinstance(source, Footage) else Scenes(source, recipe)


@dataclass(kw_only=True)
class UnderWork:
    """A clip on its way through a worker."""

    clip: AnnotatedClip
    clock: "Clock"
    dataset: str
    to: str


class Worker:
    """Holds the models. Called with a task, answers with numbers and strings; a clip's three stages can be had one by one."""

    def __init__(self, *, recipe: dict[str, Any], annotates: bool, threads: int, overlap: bool = False) -> None:
        from pipelines.recipes import AnnotateRecipe

        cv2.setNumThreads(threads)
        self._recipe = AnnotateRecipe.model_validate(recipe)
        self._knobs, self._overlap = label_knobs(self._recipe), overlap
        self._suppliers: dict[str, Supplier] = {}
        self._chain = self._load(threads) if annotates else None

    def _load(self, threads: int) -> Annotators:
        from pipelines.chain import Chain  # not at the top: a worker that only cuts needs no torch

        chain = Chain(self._recipe, threads)
        chain.trial()
        return chain

    def __call__(self, task: Task) -> dict[str, Any]:
        if task.kind == "clip":
            return self.store(self.compute(self.load(task)))
        return {"cut": self._cut, "pack": packing.pack}[task.kind](**task.body)

    def _cut(self, *, entry: dict[str, Any], to: str) -> dict[str, Any]:
        self._supplier(entry["dataset"]).cut(entry, to)
        return {}

    def _supplier(self, dataset: str) -> Supplier:
        if dataset not in self._suppliers:
            self._suppliers[dataset] = supplier(dataset, self._recipe)
        return self._suppliers[dataset]

    def load(self, task: Task) -> UnderWork:
        """A clip's frames, and what is already known of it."""
        return self._loaded(**task.body)

    def compute(self, work: UnderWork) -> UnderWork:
        """Every label."""
        assert self._chain is not None, "a worker without models was handed a clip"
        work.clock.resume()
        work.clip = self._chain(work.clip, work.clock)
        return work

    def store(self, work: UnderWork) -> dict[str, Any]:
        """The clip's artifact, whole or absent, in the spool."""
        assert self._chain is not None
        clip, clock = work.clip, work.clock
        clock.resume()
        key = reuse.work_key(clip.id, self._knobs)
        row = shards.index_row(clip, dataset=work.dataset, work_key=key, annotator_licences=self._chain.licences)
        members = shards.encode(clip, self._recipe.store, truth=self._supplier(work.dataset).truth)
        clock.lap("encode")
        shards.write_artifact(work.to, clip.id, members, row)
        clock.lap("write")
        num_bytes = sum(map(len, members.values()))
        return {"wall": clock.wall, "cpu": clock.cpu, "bytes": num_bytes, "video_seconds": clip.shape[0] / clip.fps}

    def _loaded(
        self, *, dataset: str, cut_uri: str, number: int, to: str, earlier: dict[str, Any] | None = None
    ) -> UnderWork:
        clock = Clock(time.thread_time if self._overlap else time.process_time)
        clip = self._supplier(dataset).load(cut_uri, number)
        clock.lap("decode")
        if earlier is not None:
            clip = reuse.filled(clip, reuse.Earlier(**earlier), self._knobs)
            clock.lap("reuse")
        return UnderWork(clip=clip, clock=clock, dataset=dataset, to=to)


class Clock:
    """Wall and CPU seconds of each stage of one clip."""

    def __init__(self, cpu_seconds: Callable[[], float] = time.process_time) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._cpu_seconds = cpu_seconds
        self.resume()

    def resume(self) -> None:
        """The time since the last lap was nobody's: the clip waited."""
        self._last = time.perf_counter(), self._cpu_seconds()

    def lap(self, stage: str) -> None:
        """The time since the last lap was this stage's."""
        now = time.perf_counter(), self._cpu_seconds()
        self.wall[stage] = round(now[0] - self._last[0], 4)
        self.cpu[stage] = round(now[1] - self._last[1], 4)
        self._last = now
