"""Each loss against numbers computed by hand, against the truth, and against finite differences."""

from dataclasses import replace

import examples
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from train import pose, sample
from train.losses import (
    Decoding,
    Regularizing,
    SelfSupervision,
    cameras,
    depth,
    mask,
    points,
    reduce,
    regularizers,
    scene_flow,
    self_supervision,
    terms,
)
from train.noise import Noise
from train.sample import Batch, Predicted

NOISE = Noise(seed=0, positions=(0,))


def _pairs(batch: Batch) -> torch.Tensor:
    return regularizers.neighbors(batch.key_depth.shape[1], len(batch.ids), batch.key_depth.device)


def _by_hand() -> tuple[Predicted, Batch]:
    """One sample, one row of three pixels that matters: the rest is not valid."""
    batch = examples.batch("orbit")
    key_valid = torch.zeros_like(batch.key_valid)
    key_valid[:, 0, 0, :3] = True
    dynamic = torch.zeros_like(batch.dynamic)
    dynamic[:, 0, 0, 0] = True
    batch = replace(
        batch,
        key_valid=key_valid,
        dynamic=dynamic,
        scene_flow_valid=key_valid,
        key_depth=torch.ones_like(batch.key_depth),
        points=torch.zeros_like(batch.points),
        scene_flow=torch.zeros_like(batch.scene_flow),
    )
    return examples.truth(batch), batch


def _put(values: torch.Tensor, *row: float | tuple[float, ...]) -> torch.Tensor:
    values = values.clone()
    values[0, 0, 0, : len(row)] = torch.tensor(row, dtype=values.dtype)
    return values


def test_depth_is_the_mean_difference_of_valid_pixels():
    predicted, batch = _by_hand()
    predicted = examples.changed(predicted, depth=_put(predicted.depth, 1.5, 0.0, 1.0, 99.0))
    assert depth.loss(predicted, batch).tolist() == pytest.approx([0.5])


def test_points_add_their_coordinates():
    predicted, batch = _by_hand()
    predicted = examples.changed(predicted, points=_put(predicted.points, (1, -1, 0.5), (0, 0, 0.5), (0, 0, 0)))
    assert points.loss(predicted, batch).tolist() == pytest.approx([1.0])


def test_moving_pixels_weigh_ten_times():
    predicted, batch = _by_hand()
    moved = _put(predicted.scene_flow, (0.3, 0, 0), (0, 0.06, 0), (0, 0, 0))
    predicted = examples.changed(predicted, scene_flow=moved)
    assert scene_flow.loss(predicted, batch).tolist() == pytest.approx([(10 * 0.3 + 0.06) / 12])


def test_the_camera_loss_is_quadratic_then_linear():
    predicted, batch = _by_hand()
    off = torch.zeros_like(predicted.camera)
    off[0, 0, 0], off[0, 1, 8] = 0.05, 0.5
    predicted = examples.changed(predicted, camera=predicted.camera + off)
    expected = (0.05**2 / 2 + 0.1 * (0.5 - 0.05)) / 27
    assert cameras.loss(predicted, batch).tolist() == pytest.approx([expected], rel=1e-4)


def test_an_undecided_mask_costs_a_bit():
    predicted, batch = _by_hand()
    predicted = examples.changed(predicted, dynamic_logit=torch.zeros_like(predicted.dynamic_logit))
    assert mask.loss(predicted, batch).tolist() == pytest.approx([0.693147], rel=1e-5)


def test_smoothness_counts_inner_neighbors_only():
    predicted, batch = _by_hand()
    flow = torch.zeros_like(predicted.scene_flow)
    flow[0, 0, :, :, 0] = torch.arange(64.0)
    moving = torch.zeros_like(batch.dynamic)
    moving[0, 0, 5:9, 5:9] = True
    ramp = examples.changed(predicted, scene_flow=flow)
    assert regularizers.smooth_flow(ramp, moving).tolist() == pytest.approx([1.0], rel=1e-4)
    jump = examples.changed(predicted, scene_flow=moving[..., None] * torch.ones(3))
    assert regularizers.smooth_flow(jump, moving).tolist() == [0]


@pytest.mark.parametrize("kind", ["orbit", "lateral", "many_moving", "handheld", "pure_rotation", "static"])
def test_every_loss_is_least_at_the_truth(kind):
    batch = examples.batch(kind)
    truth = examples.truth(batch)
    decoded = terms.decoding(Decoding(), truth, batch)
    assert {name: value.item() for name, value in decoded.items()} == pytest.approx(
        dict.fromkeys(decoded, 0.0), abs=1e-6
    )
    regular = terms.regularizing(Regularizing(), truth, batch, NOISE)
    assert regular["depth_consistency"].item() < 0.012  # bilinear depth across the edges that the 5 % gap lets pass
    flow = self_supervision.reprojection(truth, batch)
    assert flow.item() < 1e-4


@pytest.mark.parametrize("kind", ["orbit", "lateral", "handheld"])
def test_depth_consistency_grows_with_each_error(kind):
    batch = examples.batch(kind)
    truth = examples.truth(batch)
    wave = torch.ones(3, 1, 1)
    wave[1] = 1.1
    nudge = torch.zeros(3, 9)
    nudge[1, 0] = 0.1
    turn = torch.zeros(3, 9)
    turn[2, 4] = 0.05

    def _loss(predicted: Predicted) -> float:
        return regularizers.depth_consistency(predicted, batch, _pairs(batch)).item()

    at_truth = _loss(truth)
    for changed in (
        {"depth": truth.depth * wave},
        {"depth": truth.depth * 1.2} if kind != "handheld" else {"depth": truth.depth * wave},
        {"camera": truth.camera + nudge},
        {"camera": truth.camera + turn},
    ):
        assert _loss(examples.changed(truth, **changed)) > 1.1 * at_truth + 1e-4


def test_self_supervision_grows_with_each_error():
    batch = examples.batch("many_moving")
    truth = examples.truth(batch)

    def _total(predicted: Predicted) -> float:
        found = terms.self_supervising(SelfSupervision(mask=None), predicted, batch)
        return terms.weighted(SelfSupervision(mask=None), found).item()

    at_truth = _total(truth)
    bend = torch.linspace(0.8, 1.2, 64)
    tilted = truth.camera.clone()
    tilted[:, 1:, 1] += 0.1
    for changed in (
        {"depth": truth.depth * bend},
        {"points": truth.points * 1.1},
        {"camera": tilted},
        {"scene_flow": torch.zeros_like(truth.scene_flow)},
        {"scene_flow": truth.scene_flow + 0.05},
        {"depth": truth.depth / 2, "points": truth.points / 2},
    ):
        assert _total(examples.changed(truth, **changed)) > at_truth + 0.01


def test_nothing_valid_costs_nothing_and_moves_nothing():
    batch = sample.collate([sample.placeholder(9, 48, 64, id="torn")])
    predicted = examples.truth(batch)
    leaves = {name: (value + 0.1).requires_grad_() for name, value in vars(predicted).items()}
    predicted = examples.changed(predicted, **leaves)
    found = terms.decoding(Decoding(), predicted, batch)
    found |= terms.regularizing(Regularizing(), predicted, batch, NOISE)
    found |= terms.self_supervising(SelfSupervision(), predicted, batch)
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(found, 0.0)
    torch.stack(list(found.values())).sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in leaves.values())


class _NoWaiting(TorchDispatchMode):
    """Refuses what makes a GPU's queue run dry: a result whose shape, or a number whose value, the host must know first."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        picks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
        by_mask = picks and any(index is not None and index.dtype == torch.bool for index in args[1])
        if by_mask or func.overloadpacket in (aten.nonzero, aten.masked_select, aten._local_scalar_dense):
            raise AssertionError(f"{func}: the host would wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["decoding", "regularizing", "self_supervising"])
def test_no_loss_makes_the_host_wait(family):
    """Forward and backward, by masked sums: a boolean index would ask the device how many pixels are valid."""
    batch = examples.batch("orbit")
    leaves = {name: (value + 0.1).requires_grad_() for name, value in vars(examples.truth(batch)).items()}
    predicted = examples.changed(examples.truth(batch), **leaves)
    with _NoWaiting():
        if family == "decoding":
            found = terms.decoding(Decoding(), predicted, batch)
        elif family == "regularizing":
            found = terms.regularizing(Regularizing(), predicted, batch, NOISE)
        else:
            found = terms.self_supervising(SelfSupervision(), predicted, batch)
        torch.stack(list(found.values())).sum().backward()
        with pytest.raises(AssertionError, match="would wait"):
            batch.key_depth[batch.key_valid]
    assert any(value.grad is not None and value.grad.any() for value in leaves.values())


def test_losses_are_exact_whatever_the_networks_compute_in():
    batch = examples.batch("many_moving")
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            noise, truth = Noise(seed=0, positions=(0,)), examples.truth(batch)
            found.append(terms.decoding(Decoding(), truth, batch))
            found[-1] |= terms.regularizing(Regularizing(), truth, batch, noise)
            found[-1] |= terms.self_supervising(SelfSupervision(), truth, batch)
    assert {name: float(value) for name, value in found[0].items()} == {n: float(v) for n, v in found[1].items()}


def test_points_behind_the_camera_give_finite_gradients():
    batch = examples.batch("orbit")
    truth = examples.truth(batch)
    camera = truth.camera.clone()
    camera[:, 1, 2] += 5.0
    camera.requires_grad_()
    depth_map = truth.depth.clone().requires_grad_()
    predicted = examples.changed(truth, camera=camera, depth=depth_map)
    found = terms.regularizing(Regularizing(), predicted, batch, NOISE)
    found |= terms.self_supervising(SelfSupervision(), predicted, batch)
    torch.stack(list(found.values())).sum().backward()
    assert torch.isfinite(camera.grad).all()
    assert torch.isfinite(depth_map.grad).all()


def test_points_behind_the_camera_are_pulled_in_front_of_it():
    batch = examples.batch("orbit")
    truth = examples.truth(batch)
    camera = truth.camera.clone()
    camera[:, 1, 2] += 5.0
    points = truth.points.clone().requires_grad_()
    wrong = examples.changed(truth, camera=camera, points=points)
    (gradient,) = torch.autograd.grad(self_supervision.reprojection(wrong, batch).sum(), points)
    assert (gradient[:, 0, ..., 2][self_supervision.sure(batch)[:, 0]] < 0).all()  # ahead is where the loss falls


def _little(kind: str = "many_moving") -> tuple[Batch, dict[str, torch.Tensor]]:
    """A 4 x 4 corner of a scene in float64, with predictions near the truth."""
    batch = examples.batch(kind)
    maps = [name for name, value in vars(batch).items() if isinstance(value, torch.Tensor) and value.ndim > 3]
    cut = {name: getattr(batch, name)[:, :, 20:24, 28:32] for name in maps if name != "world_from_cam"}
    lens = batch.intrinsics.clone()
    lens[..., 2] -= 28
    lens[..., 3] -= 20
    cut["key_flow"] = cut["key_flow"] * 0.1
    batch = replace(batch, **cut, intrinsics=lens)
    truth = examples.truth(batch, torch.float64)
    rng = torch.Generator().manual_seed(0)
    leaves = {
        name: (value + 0.03 * torch.randn(value.shape, generator=rng, dtype=torch.float64)).requires_grad_()
        for name, value in vars(truth).items()
        if name != "dynamic_logit"
    }
    leaves["dynamic_logit"] = torch.randn(
        truth.dynamic_logit.shape, generator=rng, dtype=torch.float64
    ).requires_grad_()
    return batch, leaves


@pytest.mark.parametrize("family", ["decoding", "regularizing", "self_supervising"])
def test_gradients_are_those_of_finite_differences(family):
    batch, leaves = _little()
    names = sorted(leaves)

    def _total(*values: torch.Tensor) -> torch.Tensor:
        predicted = Predicted(**dict(zip(names, values)))
        if family == "decoding":
            return terms.weighted(Decoding(), terms.decoding(Decoding(), predicted, batch))
        if family == "regularizing":
            found = terms.regularizing(Regularizing(), predicted, batch, NOISE)
            return terms.weighted(Regularizing(), found)
        found = terms.self_supervising(SelfSupervision(), predicted, batch)
        return terms.weighted(SelfSupervision(), found)

    assert torch.autograd.gradcheck(_total, [leaves[name] for name in names], fast_mode=True, eps=1e-7, atol=1e-5)


def test_losses_do_not_depend_on_the_resolution():
    values, weight = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5) > 0.3
    large = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (values, weight)]
    for law in (reduce.masked_mean, reduce.root_mean):
        assert torch.allclose(law(values, weight), law(*large))


def test_values_without_weight_do_not_count_at_all():
    values = torch.tensor([[1.0, float("nan")], [float("inf"), 3.0]])
    weight = torch.tensor([[True, False], [False, True]])
    assert reduce.masked_mean(values, weight).tolist() == [1, 3]


def test_random_pairs_are_of_different_frames():
    predicted = examples.truth(examples.batch("orbit", "lateral"))
    pairs = terms.some_pairs(predicted, Noise(seed=1, positions=(0, 1)), 8)
    assert pairs.shape == (2, 10, 2)
    assert (pairs[..., 0] != pairs[..., 1]).all()
    assert pairs.max() == 2


def test_cameras_are_nine_numbers_and_back():
    batch = examples.batch("handheld", "orbit")
    nine = pose.encode(batch.world_from_cam, batch.intrinsics, 48, 64)
    world_from_cam, intrinsics = pose.decode(nine, 48, 64)
    assert torch.allclose(world_from_cam, batch.world_from_cam, atol=1e-6)
    assert torch.allclose(intrinsics, batch.intrinsics, rtol=1e-5)
    assert (nine[..., 6] >= 0).all()
    assert nine[0, 0, 7].item() == pytest.approx(2 * torch.atan(torch.tensor(24 / 60)).item(), rel=1e-5)


def test_quaternions_of_all_half_turns():
    turns = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])])
    assert pose.quaternion_of(turns).abs().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x to y: a quarter turn about z
    assert pose.quaternion_of(quarter).tolist() == pytest.approx([0, 0, 0.5**0.5, 0.5**0.5])
