"""Filling a clip's flow slots: every adjacent pair, and the pairs of key frames, there and back."""

import numpy as np
from jaxtyping import Int64

from annotate.annotator import FlowModel
from shared.clip import KEY_STRIDE, AnnotatedClip, Flow


def fill_flow(clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
    """The clip with `flow` (stride 1) and `key_flow` (stride `KEY_STRIDE`); a slot that is filled is kept."""
    return clip.with_(
        flow=clip.flow or _between(clip, flow, 1),
        key_flow=clip.key_flow or _between(clip, flow, KEY_STRIDE),
    )


def _between(clip: AnnotatedClip, flow: FlowModel, stride: int) -> Flow:
    pairs = _pairs(clip.shape[0], stride)
    if not len(pairs):
        nothing = np.zeros((0, *clip.shape[1:], 2), np.float32)
        return Flow(forward=nothing, backward=nothing, stride=stride, source=flow.source)
    forward = flow(clip.rgb, pairs)
    backward = flow(clip.rgb, np.ascontiguousarray(pairs[:, ::-1]))
    return Flow(
        forward=forward.flow,
        backward=backward.flow,
        stride=stride,
        uncertainty=forward.uncertainty,
        source=flow.source,
    )


def _pairs(num_frames: int, stride: int) -> Int64[np.ndarray, "P 2"]:
    starts = np.arange(0, max(num_frames - stride, 0), stride, dtype=np.int64)
    return np.stack((starts, starts + stride), axis=1)
