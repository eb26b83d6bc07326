"""Where shots begin: PySceneDetect's detectors, fed frame by frame so that they share the decode."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

_CLOCK = FrameTimecode(0, 25.0)
"""PySceneDetect asks for a rate. Ours only counts frames, so that variable rates change nothing."""


class Shots:
    """Collects cuts: the number of the first frame of each new shot."""

    def __init__(
        self, detector: Literal["adaptive", "content"], threshold: float, min_content: float, min_frames: int
    ) -> None:
        if detector == "adaptive":
            self._detector = AdaptiveDetector(threshold, min_scene_len=min_frames, min_content_val=min_content)
        else:
            self._detector = ContentDetector(threshold, min_scene_len=min_frames)
        self._cuts: list[int] = []
        self._now: FrameTimecode | None = None

    def add(self, number: int, bgr: UInt8[np.ndarray, "h w 3"]) -> None:
        self._now = FrameTimecode(number, _CLOCK)
        self._cuts += [cut.frame_num for cut in self._detector.process_frame(self._now, bgr)]

    def cuts(self) -> list[int]:
        """Of all frames so far; call it once, at the end."""
        if self._now is not None:
            self._cuts += [cut.frame_num for cut in self._detector.post_process(self._now)]
        return sorted(set(self._cuts) - {0})
