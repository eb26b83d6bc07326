"""The nine numbers of a camera: translation of `world_from_cam` (3), its rotation as a quaternion xyzw with w >= 0 (4), and the
vertical and horizontal field of view in radians (2). The principal point is taken to be the image's center.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def encode(
    world_from_cam: Float[Tensor, "*batch 4 4"], intrinsics: Float[Tensor, "*batch 4"], height: int, width: int
) -> Float[Tensor, "*batch 9"]:
    """The nine numbers of cameras that see height x width pixels."""
    fov = 2 * torch.atan(_row(intrinsics, height, width) / 2 / intrinsics[..., :2].flip(-1))
    quaternion = quaternion_of(world_from_cam[..., :3, :3])
    return torch.cat((world_from_cam[..., :3, 3], quaternion, fov), dim=-1)


def decode(
    nine: Float[Tensor, "*batch 9"], height: int, width: int
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4"]]:
    """`world_from_cam` and intrinsics; the quaternion may have any length, the fields of view are kept in 1..179 degrees."""
    top = torch.cat((rotation_of(nine[..., 3:7]), nine[..., :3, None]), dim=-1)
    bottom = _row(nine, 0, 0, 0, 1).expand(*nine.shape[:-1], 1, 4)
    focal = _row(nine, height, width) / 2 / torch.tan(nine[..., 7:].clamp(0.0175, 3.124) / 2)
    center = _row(nine, width / 2, height / 2).expand(*nine.shape[:-1], 2)
    return torch.cat((top, bottom), dim=-2), torch.cat((focal.flip(-1), center), dim=-1)


def quaternion_of(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """xyzw with w >= 0. Of the four ways to write it, the one that divides by the largest number is taken."""
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    x_first, y_first, z_first = 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz
    w_first = 1 + xx + yy + zz
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = (
        torch.stack((x_first, xy, xz, wx), dim=-1),
        torch.stack((xy, y_first, yz, wy), dim=-1),
        torch.stack((xz, yz, z_first, wz), dim=-1),
        torch.stack((wx, wy, wz, w_first), dim=-1),
    )
    best = torch.stack((x_first, y_first, z_first, w_first), dim=-1).argmax(dim=-1)
    chosen = torch.stack(rows, dim=-2).gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    chosen = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(chosen[..., 3:] < 0, -chosen, chosen)


def rotation_of(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation of a quaternion xyzw of any length above zero."""
    x, y, z, w = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)), dim=-1),
        torch.stack((2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)), dim=-1),
        torch.stack((2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)), dim=-1),
    )
    return torch.stack(rows, dim=-2)


def _row(like: Tensor, *numbers: float | int) -> Float[Tensor, " n"]:
    """Numbers on the device of `like`, made there: copying them would wait for it."""
    return torch.stack([like.new_full((), number) for number in numbers])
