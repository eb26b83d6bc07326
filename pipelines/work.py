"""What a worker does: cut and screen a video, annotate a clip, pack a block. Knows nothing of who calls it."""

import time
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from jaxtyping import Int64, UInt8

from annotate import cut as cutting
from annotate.annotator import FlowModel, PairFlow
from pipelines import packing, spool
from pipelines.plan import digest, label_knobs
from pipelines.tasks import Task
from shared import shards, video
from shared.clip import AnnotatedClip
from shared.knobs import Knobs

VERSION = 1
"""Of the annotators' arithmetic: raised when a change of code changes labels."""


class Supplier(Protocol):
    """Where clips come from. A data set that brings truth is one more of these, under its own name in `SUPPLIERS`."""

    def cut(self, entry: dict[str, Any], to: str) -> None:
        """Writes the spool's list of the entry's clips to this uri."""
        ...

    def load(self, cut_uri: str, number: int) -> AnnotatedClip:
        """One clip of that list, with its scores and, if the source brings any, its truth."""
        ...


class Videos:
    """Clips without labels, cut from videos."""

    def __init__(self, recipe: Any) -> None:
        self._cut, self._screen = recipe.cut, recipe.screen

    def cut(self, entry: dict[str, Any], to: str) -> None:
        found = video.probe(entry["uri"], licence=entry["licence"], caption=entry["caption"], decoder=self._cut.decoder)
        spans = cutting.screen_and_cut(found, self._cut, self._screen)
        spool.write_spans(to, entry["dataset"], spans[0].video if spans else found, spans)

    def load(self, cut_uri: str, number: int) -> AnnotatedClip:
        span = spool.read_span(cut_uri, number)
        return AnnotatedClip.of(cutting.load_clip(span, self._cut), scores=span.scores)


SUPPLIERS = {"video": Videos}
"""By the `dataset` of an entry."""


class Worker:
    """Holds the models. Called with a task, answers with numbers and strings."""

    def __init__(self, *, recipe: dict[str, Any], annotates: bool, threads: int) -> None:
        from pipelines.recipes import AnnotateRecipe

        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._recipe = AnnotateRecipe.model_validate(recipe)
        self._suppliers = {name: supplier(self._recipe) for name, supplier in SUPPLIERS.items()}
        self._chain = Chain(self._recipe) if annotates else None

    def __call__(self, task: Task) -> dict[str, Any]:
        return {"cut": self._cut, "clip": self._annotate, "pack": packing.pack}[task.kind](**task.body)

    def _cut(self, *, entry: dict[str, Any], to: str) -> dict[str, Any]:
        self._suppliers[entry["dataset"]].cut(entry, to)
        return {}

    def _annotate(self, *, dataset: str, cut_uri: str, number: int, to: str) -> dict[str, Any]:
        assert self._chain is not None, "a worker without models was handed a clip"
        clock = Clock()
        clip = self._suppliers[dataset].load(cut_uri, number)
        clock.lap("decode")
        clip = self._chain(clip, clock)
        row = shards.index_row(
            clip, dataset=dataset, work_key=work_key(clip.id, self._recipe), annotator_licences=self._chain.licences
        )
        members = shards.encode(clip, self._recipe.store)
        clock.lap("encode")
        shards.write_artifact(to, clip.id, members, row)
        clock.lap("write")
        num_bytes = sum(map(len, members.values()))
        return {"wall": clock.wall, "cpu": clock.cpu, "bytes": num_bytes, "video_seconds": clip.shape[0] / clip.fps}


class Chain:
    """Every annotator of a recipe, loaded, in the order in which they need each other."""

    def __init__(self, recipe: Any) -> None:
        self.licences = {a.licence for a in (recipe.flow, recipe.cameras, recipe.depth, recipe.motion)}
        self._flow: FlowModel = Halving(recipe.flow.load())
        self._cameras, self._depth, self._motion = recipe.cameras.load(), recipe.depth.load(), recipe.motion.load()

    def __call__(self, clip: AnnotatedClip, clock: "Clock") -> AnnotatedClip:
        from annotate import flow_slots
        from curate import measure

        clip = flow_slots.fill_flow(clip, self._flow)
        clock.lap("flow")
        for name, annotate in (("cameras", self._cameras), ("depth", self._depth), ("motion", self._motion)):
            clip = annotate(clip, self._flow)
            clock.lap(name)
        clip = clip.with_(scores=measure.scores(clip))
        clock.lap("scores")
        return clip


class Halving:
    """A flow model that takes fewer pairs at once when its device runs out of memory. Each pair's flow is its own."""

    def __init__(self, model: FlowModel) -> None:
        self._model, self.source = model, model.source

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow:
        try:
            return self._model(rgb, pairs)
        except torch.OutOfMemoryError:
            if len(pairs) == 1:
                raise
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors that did not fit
        half = len(pairs) // 2
        first, second = self(rgb, pairs[:half]), self(rgb, pairs[half:])
        doubt = None
        if first.uncertainty is not None and second.uncertainty is not None:
            doubt = np.concatenate([first.uncertainty, second.uncertainty])
        return PairFlow(flow=np.concatenate([first.flow, second.flow]), uncertainty=doubt)


class Clock:
    """Wall and CPU seconds of each stage of one clip."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """The time since the last lap was this stage's."""
        now = time.perf_counter(), time.process_time()
        self.wall[stage] = round(now[0] - self._last[0], 4)
        self.cpu[stage] = round(now[1] - self._last[1], 4)
        self._last = now


def work_key(clip_id: str, recipe: Knobs) -> str:
    """Changes if the clip's labels would: of the clip, every knob that touches them, and the versions of what computes."""
    return digest([clip_id, label_knobs(recipe), VERSION])
