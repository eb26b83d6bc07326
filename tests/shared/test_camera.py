"""Pinhole geometry by its laws, for any batch shape; and against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from shared import camera

BATCHES = [(), (1,), (3, 1, 2)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator())


def intrinsics(*batch: int) -> Tensor:
    return torch.cat((uniform(200, 400, *batch, 2), uniform(20, 120, *batch, 2)), dim=-1)


def rigid(*batch: int, angle: float = math.pi, seed: int = 0) -> Tensor:
    """Random rotations up to an angle about random axes (Rodrigues), and translations: not from the code under test."""
    source = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn((*batch, 3), dtype=torch.float64, generator=source), dim=-1)
    theta = angle * torch.rand((*batch, 1, 1), dtype=torch.float64, generator=source)
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).reshape(*batch, 3, 3)
    pose = torch.eye(4, dtype=torch.float64).expand(*batch, 4, 4).clone()
    pose[..., :3, :3] += torch.sin(theta) * skew + (1 - torch.cos(theta)) * (skew @ skew)
    pose[..., :3, 3] = torch.randn((*batch, 3), dtype=torch.float64, generator=source)
    return pose


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", BATCHES)
def test_what_is_unprojected_projects_back(batch: tuple[int, ...]) -> None:
    uv, z, k = uniform(-50, 300, *batch, 2), uniform(0.1, 80, *batch), intrinsics(*batch)
    p_cam = camera.unproject(uv, z, k)
    assert p_cam.shape == (*batch, 3)
    close(p_cam[..., 2], z)
    close(camera.project(p_cam, k), uv)
    close(camera.unproject(camera.project(p_cam, k), p_cam[..., 2], k), p_cam)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("angle", [math.pi, 1e-7, 0.0])
def test_the_inverse_undoes(batch: tuple[int, ...], angle: float) -> None:
    target_from_source, p_source = rigid(*batch, angle=angle), uniform(-9, 9, *batch, 3)
    source_from_target = camera.invert(target_from_source)
    identity = torch.eye(4, dtype=torch.float64).expand(*batch, 4, 4)
    close(source_from_target @ target_from_source, identity)
    close(target_from_source @ source_from_target, identity)
    close(camera.invert(source_from_target), target_from_source)
    close(camera.transform(source_from_target, camera.transform(target_from_source, p_source)), p_source)


@pytest.mark.parametrize("batch", BATCHES)
def test_transforms_compose(batch: tuple[int, ...]) -> None:
    b_from_a, c_from_b = rigid(*batch, seed=1), rigid(*batch, seed=2)
    d_from_c, p_a = rigid(*batch, seed=3), uniform(-9, 9, *batch, 3)
    one_by_one = camera.transform(d_from_c, camera.transform(c_from_b, camera.transform(b_from_a, p_a)))
    close(camera.transform(d_from_c @ c_from_b @ b_from_a, p_a), one_by_one)
    close(camera.invert(c_from_b @ b_from_a), camera.invert(b_from_a) @ camera.invert(c_from_b))


@pytest.mark.parametrize("batch", BATCHES)
def test_a_transform_keeps_distances(batch: tuple[int, ...]) -> None:
    target_from_source = rigid(*batch)
    p, q = uniform(-9, 9, *batch, 3), uniform(-9, 9, *batch, 3) ** 2
    moved = camera.transform(target_from_source, p) - camera.transform(target_from_source, q)
    close(moved.norm(dim=-1), (p - q).norm(dim=-1))


def test_batches_broadcast_as_if_repeated() -> None:
    k, uv, z = intrinsics(3, 1), uniform(0, 100, 1, 5, 2), uniform(1, 9, 3, 5)
    found = camera.unproject(uv, z, k)
    for i in range(3):
        for j in range(5):
            close(found[i, j], camera.unproject(uv[0, j], z[i, j], k[i, 0]))
    poses = rigid(4)
    points = uniform(-1, 1, 6, 1, 3)
    moved = camera.transform(poses, points)
    assert moved.shape == (6, 4, 3)
    close(moved[2, 3], camera.transform(poses[3], points[2, 0]))


def test_numbers_worked_out_by_hand() -> None:
    k = torch.tensor([100.0, 200.0, 32.0, 24.0])
    assert camera.project(torch.tensor([1.0, -0.5, 2.0]), k).tolist() == [82.0, -26.0]
    assert camera.unproject(torch.tensor([82.0, -26.0]), torch.tensor(2.0), k).tolist() == [1.0, -0.5, 2.0]
    quarter_turn = torch.tensor([[0.0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1]])  # about y: z becomes x
    assert camera.transform(quarter_turn, torch.tensor([0.0, 0.0, 1.0])).tolist() == [6.0, 6.0, 7.0]


def test_the_corner_of_the_top_left_pixel_is_the_origin() -> None:
    uv = camera.pixel_centers(2, 3)
    assert uv.shape == (2, 3, 2)
    assert uv.dtype == torch.float64
    assert uv[0, 0].tolist() == [0.5, 0.5]
    assert uv[1, 2].tolist() == [2.5, 1.5]
    assert camera.pixel_centers(2, 3, like=torch.zeros(1)).dtype == torch.float32


def test_resizing_multiplies_the_intrinsics_and_nothing_else() -> None:
    """A 2 x 2 block of pixels has its center where the one pixel of the half-sized image has it."""
    k = torch.tensor([100.0, 100.0, 33.0, 25.0], dtype=torch.float64)
    fine, coarse = camera.pixel_centers(8, 8), camera.pixel_centers(4, 4)
    blocks = fine.reshape(4, 2, 4, 2, 2).mean(dim=(1, 3))
    one = torch.ones(4, 4, dtype=torch.float64)
    close(camera.unproject(blocks, one, k), camera.unproject(coarse, one, k / 2))


def test_a_pointmap_is_where_each_pixel_is() -> None:
    poses, k, z = rigid(3), intrinsics(3), uniform(1, 9, 3, 4, 5)
    p_world = camera.pointmap(z, poses, k)
    assert p_world.shape == (3, 4, 5, 3)
    seen = camera.transform(camera.invert(poses)[2], p_world[2, 1, 4])
    close(camera.project(seen, k[2]), torch.tensor([4.5, 1.5], dtype=torch.float64))
    close(seen[2], z[2, 1, 4])


def test_the_flow_of_a_static_world() -> None:
    """A camera that moves right by b sees a wall at z move left by f b / z pixels; a still camera sees nothing move."""
    k = torch.tensor([[100.0, 100.0, 4.0, 3.0]], dtype=torch.float64)
    z = uniform(2, 5, 1, 6, 8)
    still, step = torch.eye(4, dtype=torch.float64)[None], torch.eye(4, dtype=torch.float64)[None].clone()
    step[0, 0, 3] = -0.3  # next_from_this of a camera that went 0.3 to the right
    flow, z_next = camera.rigid_flow(z, step, k, k)
    close(flow[..., 0], -100 * 0.3 / z)
    close(flow[..., 1], torch.zeros_like(z))
    close(z_next, z)
    flow, _ = camera.rigid_flow(z, still, k, k)
    close(flow, torch.zeros_like(flow))
    flow, _ = camera.rigid_flow(z, still, k, k * torch.tensor([2.0, 2, 1, 1], dtype=torch.float64))  # a zoom
    close(flow, camera.pixel_centers(6, 8)[None] - torch.tensor([4.0, 3.0], dtype=torch.float64))


def test_what_is_behind_the_next_camera_says_so() -> None:
    k = torch.tensor([[100.0, 100.0, 4.0, 3.0]], dtype=torch.float64)
    past = torch.eye(4, dtype=torch.float64)[None].clone()
    past[0, 2, 3] = -5.0
    _, z_next = camera.rigid_flow(torch.full((1, 6, 8), 3.0, dtype=torch.float64), past, k, k)
    assert (z_next < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept_and_gradients_flow(dtype: torch.dtype) -> None:
    z = torch.full((2, 3, 4), 2.0, dtype=dtype, requires_grad=True)
    poses, k = rigid(2).to(dtype), intrinsics(2).to(dtype)
    flow, z_next = camera.rigid_flow(z, poses, k, k)
    assert {flow.dtype, z_next.dtype, camera.pointmap(z, poses, k).dtype} == {dtype}
    camera.pointmap(z, poses, k).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
