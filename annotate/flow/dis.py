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
    preset: Literal["ultrafast", "fast", "medium"] = "medium"
    """How much each scale is refined."""
    finest_scale: Annotated[int, Field(ge=0, le=5)] = 1
    """Flow is searched down to 1/2^this of the size, then enlarged: 0 is full size, four times as dear as 1.

    Small pictures use a finer one.
    """
    threads: Annotated[int, Field(ge=1)] = 1
    """OpenCV's, in this worker; more than one may change the last bits."""

    def load(self) -> FlowModel:
        return _Loaded(self)


_PATCH_PX = 8
"""Side of the patches that are searched. A scale with a side below it crashes OpenCV, not always with an exception."""


class Search:
    """The search itself, on gray pictures."""

    def __init__(self, preset: str, finest_scale: int) -> None:
        import cv2  # a recipe that names `Dis` needs no OpenCV

        self._dis = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
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
        self._search = Search(knobs.preset, knobs.finest_scale)

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow:
        import cv2

        gray = {t: cv2.cvtColor(rgb[t], cv2.COLOR_RGB2GRAY) for t in np.unique(pairs).tolist()}
        flow = np.empty((len(pairs), *rgb.shape[1:3], 2), np.float32)
        for out, (first, second) in zip(flow, pairs.tolist()):
            out[...] = self._search(gray[first], gray[second])
        return PairFlow(flow=flow)
