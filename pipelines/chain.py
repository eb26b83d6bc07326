"""The annotators of a recipe, one after the other, on one clip."""

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from annotate import flow_slots
from annotate.annotator import FlowModel, PairFlow
from annotate.flow.pairs import PairFlows
from curate import measure
from pipelines.recipes import AnnotateRecipe
from pipelines.work import Clock
from shared.clip import AnnotatedClip


class Chain:
    """Every annotator of a recipe, loaded, in the order in which they need each other."""

    def __init__(self, recipe: AnnotateRecipe, threads: int) -> None:
        torch.set_num_threads(threads)
        self.licences = {a.licence for a in (recipe.flow, recipe.cameras, recipe.depth, recipe.motion)}
        self._flow: FlowModel = Halving(recipe.flow.load())
        self._cameras, self._depth, self._motion = recipe.cameras.load(), recipe.depth.load(), recipe.motion.load()

    def __call__(self, clip: AnnotatedClip, clock: Clock) -> AnnotatedClip:
        flow = PairFlows.of(clip.rgb, self._flow)  # every annotator asks for overlapping pairs: each is made once
        clip = flow_slots.fill_flow(clip, flow)
        clock.lap("flow")
        for name, annotate in (("cameras", self._cameras), ("depth", self._depth), ("motion", self._motion)):
            clip = annotate(clip, flow)
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
