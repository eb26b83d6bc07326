"""The annotators of a recipe, one after the other, on one clip."""

import cv2
import numpy as np
import torch
from jaxtyping import Int64, UInt8

from annotate import flow_slots
from annotate.annotator import FlowModel, PairFlow
from annotate.flow.pairs import PairFlows
from curate import measure
from pipelines.recipes import AnnotateRecipe
from pipelines.work import Clock
from shared.clip import AnnotatedClip, Cameras, Clip

_TRIAL = (5, 128, 192)
"""Frames, height and width: the least that every network takes, and milliseconds for those that need no GPU."""


class Chain:
    """Every annotator of a recipe, loaded, in the order in which they need each other."""

    def __init__(self, recipe: AnnotateRecipe, threads: int) -> None:
        torch.set_num_threads(threads)
        self._recipe = recipe
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

    def trial(self) -> None:
        """A few small frames through every model, as clips will go: what cannot work is said before a clip is touched.

        Raises ValueError, one sentence, with the annotator's name.
        """
        clip, clock = trial_clip(), Clock()
        if not self._recipe.cameras.tries_small:
            clip = clip.with_(cameras=_still(clip))
        try:
            self(clip, clock)
        except Exception as error:
            stage = next(name for name in ("flow", "cameras", "depth", "motion", "scores") if name not in clock.wall)
            kind = getattr(getattr(self._recipe, stage, None), "kind", "")
            what = f"{stage} ({kind})" if kind else stage
            raise ValueError(
                f"{what}: fails on a trial of {len(clip.rgb)} frames: {type(error).__name__}: {error}"
            ) from error


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


def trial_clip() -> AnnotatedClip:
    """A textured wall that the camera passes, at two pixels a frame."""
    frames, height, width = _TRIAL
    coarse = np.random.default_rng(0).integers(0, 255, (height // 3, width // 3, 3), dtype=np.uint8)
    wall = cv2.resize(coarse, (width + 2 * frames, height), interpolation=cv2.INTER_CUBIC)
    rgb = np.stack([wall[:, 2 * number : 2 * number + width] for number in range(frames)])
    return AnnotatedClip.of(Clip(id="0", rgb=rgb, fps=8.0, source="trial", frames=np.arange(frames)))


def _still(clip: AnnotatedClip) -> Cameras:
    frames, height, width = clip.shape
    intrinsics = np.array([width, width, width / 2, height / 2], np.float64)
    return Cameras(
        world_from_cam=np.tile(np.eye(4), (frames, 1, 1)),
        intrinsics=np.tile(intrinsics, (frames, 1)),
        metric=False,
        degenerate="trial",
        source="trial",
    )
