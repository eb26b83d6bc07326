"""Sampling and the flow cycle, against values worked out by hand and against scipy."""

import numpy as np
import pytest
import scene
import torch
from scipy.ndimage import map_coordinates

from shared import warp


def test_pixel_centers_are_sampled_exactly() -> None:
    image = torch.rand(2, 5, 7, 3, dtype=torch.float64)
    v, u = torch.meshgrid(torch.arange(5.0) + 0.5, torch.arange(7.0) + 0.5, indexing="ij")
    uv = torch.stack((u, v), -1).expand(2, 5, 7, 2).double()
    assert torch.allclose(warp.sample(image, uv), image, atol=1e-12)


def test_between_centers_lies_the_weighted_mean() -> None:
    image = torch.tensor([[[1.0], [3.0]], [[5.0], [11.0]]])  # H W C: one image, no batch
    uv = torch.tensor([[1.0, 1.0], [0.75, 0.5], [0.5, 1.25]])
    assert warp.sample(image, uv)[:, 0].tolist() == pytest.approx([5.0, 1.5, 4.0])


@pytest.mark.parametrize("points", [(11,), (3, 4), (2, 2, 2)])
def test_any_shape_of_positions_equals_scipy(points: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image, uv = rng.random((2, 6, 8, 2)), rng.uniform(0.5, 5.5, (2, *points, 2))
    found = warp.sample(torch.from_numpy(image), torch.from_numpy(uv)).numpy()
    for b in range(2):
        for c in range(2):
            at = np.stack((uv[b, ..., 1] - 0.5, uv[b, ..., 0] - 0.5))
            expected = map_coordinates(image[b, ..., c], at, order=1)
            assert np.allclose(found[b, ..., c], expected, atol=1e-12)


def test_border_is_the_edge_or_zero() -> None:
    image = torch.full((4, 4, 1), 2.0)
    outside = torch.tensor([[-3.0, 2.0], [0.0, 2.0]])
    assert warp.sample(image, outside)[:, 0].tolist() == [2.0, 2.0]
    assert warp.sample(image, outside, border="zero")[:, 0].tolist() == [0.0, 1.0]


def test_nearest_takes_the_pixel_that_holds_the_position() -> None:
    image = torch.arange(6.0).reshape(2, 3, 1)
    uv = torch.tensor([[0.01, 0.01], [1.99, 0.5], [2.01, 1.9]])
    assert warp.sample(image, uv, mode="nearest")[:, 0].tolist() == [0.0, 1.0, 5.0]


def test_positions_for_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="one set for each"):
        warp.sample(torch.zeros(2, 3, 3, 1), torch.zeros(3, 5, 2))


def test_in_bounds_counts_the_whole_image() -> None:
    uv = torch.tensor([[0.0, 0.0], [4.0, 3.0], [4.1, 1.0], [-0.1, 1.0], [torch.nan, 1.0]])
    assert warp.in_bounds(uv, 3, 4).tolist() == [True, True, False, False, False]


def test_cycle_error_by_hand() -> None:
    forward, backward = torch.zeros(1, 4, 6, 2), torch.zeros(1, 4, 6, 2)
    forward[..., 0] = 2.0
    backward[..., 0] = -1.5
    error = warp.cycle_error(forward, backward)
    assert torch.allclose(error[:, :, :4], torch.tensor(0.5))
    assert torch.isinf(error[:, :, 4:]).all()  # 4.5 + 2 is beyond the image's right edge at 6


def test_cycle_ok_at_its_limit() -> None:
    """F = (10, 0), B = (-10 + e, 0): the limit is e² = 0.01 (100 + (10 - e)²) + 0.5, e = 1.48."""
    forward, backward = torch.zeros(1, 3, 30, 2), torch.zeros(1, 3, 30, 2)
    forward[..., 0] = 10.0
    for error, kept in ((1.4, True), (1.6, False)):
        backward[..., 0] = error - 10
        assert warp.cycle_ok(forward, backward)[:, :, :19].unique().tolist() == [kept]


def test_true_flow_passes_where_seen_and_fails_where_hidden() -> None:
    size = {"frames": 9, "height": 96, "width": 128, "focal": 120.0}
    clip, seen = scene.clip("many_moving", **size), scene.visible("many_moving", **size)
    ok = warp.cycle_ok(torch.from_numpy(clip.flow.forward), torch.from_numpy(clip.flow.backward)).numpy()
    assert ok[seen].mean() > 0.985  # bilinear backward flow is wrong beside edges of movers
    assert ok[~seen].mean() < 0.5
