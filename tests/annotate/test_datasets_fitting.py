"""Labels at another size than their data set's, against the same world rendered at that size: half a pixel off would show."""

import numpy as np
import pytest
from jaxtyping import Int64
from miniatures import drawing, imported

from annotate.datasets import importing
from annotate.datasets.dataset import Facts, Field, Frame, Scene
from annotate.datasets.fitting import Fit
from shared.clip import AnnotatedClip


class Rendered(Scene):
    """The exact world at any size."""

    def __init__(self, height: int, width: int) -> None:
        self.true = drawing.true(height=height, width=width)
        self.facts = Facts(uri="x", licence="", fps=8.0, height=height, width=width, shots=(np.arange(5),))

    def frame(self, number: int) -> Frame:
        true = self.true
        return Frame(
            rgb=true.clip.rgb[number],
            z=true.z[number],
            instances=true.instances[number],
            world_from_cam=true.world_from_cam[number],
            intrinsics=true.clip.cameras.intrinsics[number],
        )

    def flow(self, start: int, end: int) -> Field | None:
        flow = self.true.clip.flow
        if abs(end - start) > 1:
            return None
        values = flow.forward[start] if end > start else flow.backward[end]
        return Field(values=values, valid=np.ones(values.shape[:2], bool))

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        if end != start + 1:
            return None
        values = self.true.scene_flow[start].astype(np.float32)
        return Field(values=values, valid=np.ones(values.shape[:2], bool))


def _clip(scene: Scene, height: int, width: int) -> AnnotatedClip:
    cut = imported.cut(8.0, height=height, width=width)
    (span,) = importing.spans(scene, cut, {})
    return importing.load(scene, span, cut, "x")


def _inside(ids: Int64[np.ndarray, "T H W"], z: np.ndarray) -> np.ndarray:
    """Pixels whose neighbors lie on the same surface."""
    same = np.ones(z.shape, bool)
    for axis in (1, 2):
        for shift in (1, -1):
            same &= np.abs(np.roll(z, shift, axis) - z) < 0.03 * z
            same &= np.roll(ids, shift, axis) == ids
    same[:, [0, -1]] = same[:, :, [0, -1]] = False
    return same


@pytest.mark.parametrize(("height", "width"), [(96, 128), (72, 96), (36, 48), (144, 192)])
def test_labels_of_another_size_are_those_of_a_rendering_at_this_size(height: int, width: int) -> None:
    clip, true = _clip(Rendered(height, width), 48, 64), drawing.true().clip
    np.testing.assert_allclose(clip.cameras.intrinsics, true.cameras.intrinsics, rtol=1e-9)
    inside = _inside(true.motion.instances.astype(np.int64), true.depth.z)
    error = np.linalg.norm(clip.pointmap() - true.pointmap(), axis=-1)[inside]
    assert np.percentile(error, 95) < 0.002, "1 / z is linear on planes"
    flow = np.linalg.norm(clip.flow.forward - true.flow.forward, axis=-1)[inside[:-1]]
    assert np.percentile(flow, 95) < 0.01
    moving = true.motion.dynamic & inside
    np.testing.assert_array_equal(clip.motion.dynamic[moving], True)
    scene_flow = np.linalg.norm(clip.motion.scene_flow - true.motion.scene_flow, axis=-1)[moving[:-1]]
    assert np.percentile(scene_flow, 95) < 0.001


def test_what_is_cropped_keeps_its_place() -> None:
    clip, true = _clip(Rendered(48, 64), 48, 40), drawing.true().clip
    np.testing.assert_array_equal(clip.rgb, true.rgb[:, :, 12:52])
    np.testing.assert_allclose(clip.depth.z, true.depth.z[:, :, 12:52], rtol=1e-6)
    np.testing.assert_allclose(clip.cameras.intrinsics[0], true.cameras.intrinsics[0] - (0, 0, 12, 0))
    np.testing.assert_allclose(clip.pointmap(), true.pointmap()[:, :, 12:52], atol=1e-5)


def test_depth_is_never_mixed_across_an_edge() -> None:
    z = np.full((8, 8), 2.0, np.float32)
    z[:, 4:] = 8.0
    z[0] = 0
    found = Fit(height=8, width=8, to_height=5, to_width=5).depth(z)
    assert set(np.unique(found)) <= {0.0, 2.0, 8.0}
