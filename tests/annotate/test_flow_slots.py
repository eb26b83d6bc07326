"""Each slot gets its own pairs, there and back, from one call."""

import numpy as np

from annotate.annotator import PairFlow
from annotate.flow_slots import fill_flow
from shared.clip import AnnotatedClip


class Numbered:
    """Answers each pair with its frame numbers, and remembers how it was asked."""

    source = "numbered"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rgb, pairs):
        self.calls += 1
        flow = np.broadcast_to(pairs[:, None, None].astype(np.float32), (len(pairs), *rgb.shape[1:3], 2))
        return PairFlow(flow=np.ascontiguousarray(flow), uncertainty=flow[..., 0] * 1)


def clip_of(frames: int) -> AnnotatedClip:
    rgb = np.zeros((frames, 2, 3, 3), np.uint8)
    return AnnotatedClip(id="a", rgb=rgb, fps=8.0, source="a.mp4", frames=np.arange(frames))


def test_every_slot_has_its_pairs_from_one_call():
    model = Numbered()
    clip = fill_flow(clip_of(10), model)
    assert model.calls == 1
    assert clip.flow.forward[:, 0, 0].tolist() == [[t, t + 1] for t in range(9)]
    assert clip.flow.backward[:, 0, 0].tolist() == [[t + 1, t] for t in range(9)]
    assert clip.key_flow.forward[:, 0, 0].tolist() == [[0, 4], [4, 8]]
    assert clip.key_flow.backward[:, 0, 0].tolist() == [[4, 0], [8, 4]]
    assert clip.flow.uncertainty[:, 0, 0].tolist() == list(range(9))
    assert clip.key_flow.uncertainty[:, 0, 0].tolist() == [0, 4]


def test_filled_slots_are_kept():
    model = Numbered()
    half = fill_flow(clip_of(9), model).with_(key_flow=None)
    again = fill_flow(half, model)
    assert again.flow is half.flow
    assert again.key_flow.forward[:, 0, 0].tolist() == [[0, 4], [4, 8]]
    assert fill_flow(again, model) is again
    assert model.calls == 2


def test_short_clips_have_empty_slots():
    alone = fill_flow(clip_of(1), Numbered())
    assert alone.flow.forward.shape == alone.key_flow.backward.shape == (0, 2, 3, 2)
    assert fill_flow(clip_of(3), Numbered()).key_flow.forward.shape == (0, 2, 3, 2)
