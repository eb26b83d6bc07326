"""Filling a clip's flow slots: every adjacent pair, and the pairs of key frames, there and back."""

import numpy as np
from jaxtyping import Int64

from annotate.annotator import FlowModel, PairFlow
from shared.clip import KEY_STRIDE, AnnotatedClip, Flow


def fill_flow(clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
    """The clip with `flow` (stride 1) and `key_flow` (stride `KEY_STRIDE`); a slot that is filled is kept.

    All pairs are asked for in one call, so that a network can share between them what it knows of a frame.
    """
    slots = {1: clip.flow, KEY_STRIDE: clip.key_flow}
    pairs = {stride: _pairs(clip.shape[0], stride) for stride, filled in slots.items() if filled is None}
    if not pairs:
        return clip
    asked = np.concatenate([way for there in pairs.values() for way in (there, there[:, ::-1])])
    made = flow(clip.rgb, asked) if len(asked) else PairFlow(flow=np.zeros((0, *clip.shape[1:], 2), np.float32))
    start = 0
    for stride, there in pairs.items():
        slots[stride] = _slot(made, start, len(there), stride, flow.source)
        start += 2 * len(there)
    return clip.with_(flow=slots[1], key_flow=slots[KEY_STRIDE])


def _slot(made: PairFlow, start: int, num_pairs: int, stride: int, source: str) -> Flow:
    """The answers from `start`: so many forward, then as many backward."""
    middle = start + num_pairs
    return Flow(
        forward=made.flow[start:middle],
        backward=made.flow[middle : middle + num_pairs],
        stride=stride,
        uncertainty=None if made.uncertainty is None else made.uncertainty[start:middle],
        source=source,
    )


def _pairs(num_frames: int, stride: int) -> Int64[np.ndarray, "P 2"]:
    starts = np.arange(0, max(num_frames - stride, 0), stride, dtype=np.int64)
    return np.stack((starts, starts + stride), axis=1)
