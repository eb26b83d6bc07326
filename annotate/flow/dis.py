"""OpenCV's dense inverse search: optical flow without weights, in hundredths of a second (Kroeger et al., ECCV 2016)."""

import math
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from pydantic import Field

from annotate.annotator import Annotator, FlowModel, PairFlow


class Dis(Annotator):
    """Flow by dense inverse search, on the CPU."""

    kind: Literal["dis"] = "dis"
    finest_scale: Annotated[int, Field(ge=0, le=5)] = 0
    """Flow is searched down to 1/2^this of the size, then enlarged: 1 takes half the time, with a third more error.

    Small pictures use a finer one.
    """
    patch_stride: Annotated[int, Field(ge=1, le=8)] = 5
    """Pixels from one patch of 8 x 8 to the next, at each scale."""
    descents: Annotated[int, Field(ge=1)] = 16
    """Most steps of a patch's search, at each scale."""
    refinements: Annotated[int, Field(ge=0)] = 2
    """Variational steps after the search, at each scale."""
    threads: Annotated[int, Field(ge=1)] = 1
    """OpenCV's, in this worker; more than one may change the last bits."""

    def load(self) -> FlowModel:
        return _Loaded(self)


_PATCH_PX = 8
"""Side of the patches that are searched. A scale with a side below it crashes OpenCV, not always with an exception."""


class Search:
    """The search itself, on gray pictures."""

    def __init__(self, finest_scale: int, patch_stride: int, descents: int, refinements: int) -> None:
        import cv2  # a recipe that names `Dis` needs no OpenCV

        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setPatchSize(_PATCH_PX)
        self._dis.setPatchStride(patch_stride)
        self._dis.setGradientDescentIterations(descents)
        self._dis.setVariationalRefinementIterations(refinements)
        self._finest_scale = finest_scale

    def __call__(
        self, first: UInt8[np.ndarray, "H W"], second: UInt8[np.ndarray, "H W"]
    ) -> Float32[np.ndarray, "H W 2"]:
        """Flow in pixels from the first to the second. Nothing is kept between calls, so their order cannot matter."""
        height, width = first.shape
        if min(height, width) < 2 * _PATCH_PX:
            raise ValueError(f"pictures of {width} x {height}, expected at least {2 * _PATCH_PX} px a side for flow")
        self._dis.setFinestScale(min(self._finest_scale, int(math.log2(min(height, width) / _PATCH_PX))))
        return self._dis.calc(first, second, None)  # pyright: ignore[reportArgumentType, reportCallIssue]


class _Loaded:
    source = "dis"

    def __init__(self, knobs: Dis) -> None:
        import cv2

        cv2.setNumThreads(knobs.threads)
        self._search = Search(knobs.finest_scale, knobs.patch_stride, knobs.descents, knobs.refinements)

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow:
        import cv2

        gray = {t: cv2.cvtColor(rgb[t], cv2.COLOR_RGB2GRAY) for t in np.unique(pairs).tolist()}
        flow = np.empty((len(pairs), *rgb.shape[1:3], 2), np.float32)
        for out, (first, second) in zip(flow, pairs.tolist()):
            out[...] = self._search(gray[first], gray[second])
        return PairFlow(flow=flow)
