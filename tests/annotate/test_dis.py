"""Flow against a picture shifted by a known amount."""

import cv2
import numpy as np
import pytest

from annotate.annotator import FlowModel
from annotate.flow.dis import Dis


@pytest.fixture(scope="module")
def shifted() -> np.ndarray:
    """Four views of one soft texture, each 3 px further right and 2 px further up."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (160, 200, 3)), (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([texture[20 + 2 * t : 116 + 2 * t, 40 - 3 * t : 168 - 3 * t] for t in range(4)])


@pytest.mark.parametrize("knobs", [{}, {"finest_scale": 1}, {"patch_stride": 3, "descents": 25, "refinements": 5}])
def test_a_shift_is_found_to_a_tenth_of_a_pixel(shifted: np.ndarray, knobs: dict[str, int]) -> None:
    model = Dis(**knobs).load()
    assert isinstance(model, FlowModel)
    pairs = np.array([[0, 1], [3, 0], [1, 1]])
    found = model(shifted, pairs)
    assert found.uncertainty is None
    inside = found.flow[:, 16:-16, 16:-16]
    for flow, expected in zip(inside, ((3, -2), (-9, 6), (0, 0))):
        assert np.abs(np.median(flow.reshape(-1, 2), axis=0) - expected).max() < 0.1


def test_pairs_do_not_depend_on_each_other(shifted: np.ndarray) -> None:
    model = Dis().load()
    together = model(shifted, np.array([[0, 2], [1, 3], [2, 0]])).flow
    alone = np.concatenate([model(shifted, np.array([pair])).flow for pair in ([0, 2], [1, 3], [2, 0])])
    assert np.array_equal(together, alone)


def test_a_small_picture_leaves_no_trace(shifted: np.ndarray) -> None:
    pairs = np.array([[0, 1]])
    model = Dis().load()
    model(np.ascontiguousarray(shifted[:, ::4, ::4]), pairs)
    assert np.array_equal(model(shifted, pairs).flow, Dis().load()(shifted, pairs).flow)


def test_no_pairs_give_no_flow(shifted: np.ndarray) -> None:
    assert Dis().load()(shifted, np.zeros((0, 2), np.int64)).flow.shape == (0, 96, 128, 2)


def test_one_thread_unless_asked_for_more() -> None:
    Dis(threads=2).load()
    assert cv2.getNumThreads() == 2
    Dis().load()
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (16, 640), (640, 16), (17, 300), (31, 500), (24, 24)])
def test_small_and_thin_pictures_have_flow_and_tiny_ones_a_sentence(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (2, *size, 3), dtype=np.uint8)
    flow = Dis(finest_scale=3).load()(rgb, np.array([[0, 1]])).flow
    assert np.isfinite(flow).all()
    with pytest.raises(ValueError, match="at least 16 px"):
        Dis().load()(rgb[:, :15], np.array([[0, 1]]))
