"""What the decoder says of the key frames -> the slots of a clip, for every frame.

Key frames carry the decoder's own answer. Between them cameras are interpolated, and depth follows the decoded geometry video, its
lost range fitted to the decoder's depth at the key frames. Without a geometry video, depth is valid at key frames only.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shared import align, camera, warp
from shared.clip import KEY_STRIDE, AnnotatedClip, Cameras, Clip, Depth, Flow, Motion
from train import pose
from train.sample import Predicted

SOURCE = "worldreel"
MIN_DEPTH = 1e-4
"""Of the scene's unit: depth at a valid pixel is above zero."""
AT_REST = 0.005
"""Of the scene's unit, from key frame to key frame: what labels of motion take for standing still."""


def annotated(
    clip: Clip,
    predicted: Predicted,
    geometry: Float[Tensor, "T H W 3"] | None,
    *,
    min_flow_diagonals: float,
    gate_scene_flow: bool = True,
) -> AnnotatedClip:
    """The clip with depth, cameras, flow, key flow and motion as predicted (a batch of one). Nothing is metric.

    `gate_scene_flow` sets scene flow to 0 where the mask says that nothing moves (equation 5).
    """
    frames, height, width = clip.shape
    in_batch = Predicted(**{name: value.double().cpu() for name, value in vars(predicted).items()})
    world_from_key, key_intrinsics = pose.decode(in_batch.camera[0], height, width)
    nominal_from_world = camera.invert(
        world_from_key[0]
    )  # the first camera is the world, also where it was not predicted so
    world_from_key = nominal_from_world @ world_from_key
    dynamic = in_batch.dynamic_logit[0] > 0
    scene_flow = in_batch.scene_flow[0] @ nominal_from_world[:3, :3].transpose(0, 1)
    leak = scene_flow_leak(scene_flow[:-1], dynamic[:-1])
    if gate_scene_flow:
        scene_flow = torch.where(dynamic[..., None], scene_flow, 0)
    points = camera.pointmap(in_batch.depth[0], world_from_key, key_intrinsics)
    key_flow = _key_flow(points + scene_flow, world_from_key, key_intrinsics)
    flow = None if geometry is None else _flow(geometry.double().cpu(), key_flow, min_flow_diagonals)
    own = camera.transform(nominal_from_world, in_batch.points[0])
    gap = ((own - points).norm(dim=-1) / points.norm(dim=-1).clamp_min(1e-6)).median()
    return AnnotatedClip.of(
        clip,
        depth=_depth(in_batch.depth[0], geometry, frames),
        cameras=_cameras(world_from_key, key_intrinsics, frames),
        flow=None if flow is None else _both_ways(flow, 1),
        key_flow=_both_ways(key_flow, KEY_STRIDE),
        motion=_motion(dynamic, scene_flow, frames),
        scores={"points_gap": float(gap), "scene_flow_leak": leak},
    )


def between(keys: Float[Tensor, "K *map"], frames: int) -> Float[Tensor, "T *map"]:
    """Linear in time between key frames, exact at them."""
    place = torch.arange(frames, dtype=keys.dtype) / KEY_STRIDE
    before = place.floor().long().clamp_max(len(keys) - 1)
    after = (before + 1).clamp_max(len(keys) - 1)
    share = (place - before).reshape(-1, *[1] * (keys.ndim - 1))
    return keys[before] * (1 - share) + keys[after] * share


def scene_flow_leak(scene_flow: Float[Tensor, "Q H W 3"], dynamic: Bool[Tensor, "Q H W"], unit: float = 1.0) -> float:
    """Mean |F3d| of static pixels over that of moving ones, at most 1. What moves slower than `AT_REST` units counts as that fast:
    a world that as good as stands still leaks nothing.

    What the mask calls static should stand still: a high share means that camera motion was taken for scene motion, or that the
    edges of what moves are blurred.
    """
    speed = scene_flow.norm(dim=-1)
    at_rest = float(speed[~dynamic].mean()) if (~dynamic).any() else 0.0
    moving = float(speed[dynamic].mean()) if dynamic.any() else 0.0
    return min(1.0, at_rest / max(moving, AT_REST * unit))


def inverse(flow: Float[Tensor, "P H W 2"], num_rounds: int = 5) -> Float[Tensor, "P H W 2"]:
    """The flow that leads back: B(q) = -F(u) with u + F(u) = q, by fixed-point rounds; what is hidden gets its neighbor's."""
    back = -flow
    for _ in range(num_rounds):
        back = -warp.sample(flow, warp.targets(back))
    return back


def _cameras(world_from_key: Float[Tensor, "K 4 4"], intrinsics: Float[Tensor, "K 4"], frames: int) -> Cameras:
    """Positions and lenses are interpolated linearly, rotations along the shorter arc."""
    quaternion = pose.quaternion_of(world_from_key[:, :3, :3])
    for k in range(1, len(quaternion)):
        if quaternion[k] @ quaternion[k - 1] < 0:
            quaternion[k] = -quaternion[k]
    world_from_cam = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    world_from_cam[:, :3, :3] = pose.rotation_of(between(quaternion, frames))
    world_from_cam[:, :3, 3] = between(world_from_key[:, :3, 3], frames)
    world_from_cam[0] = torch.eye(4, dtype=torch.float64)
    return Cameras(
        world_from_cam=world_from_cam.numpy(),
        intrinsics=between(intrinsics, frames).numpy(),
        metric=False,
        source=SOURCE,
        focal_source="network",
    )


def _depth(keys: Float[Tensor, "K H W"], geometry: Float[Tensor, "T H W 3"] | None, frames: int) -> Depth:
    valid = torch.ones((frames, *keys.shape[1:]), dtype=torch.bool)
    if geometry is None:
        z = between(keys, frames)
        valid[:] = (torch.arange(frames) % KEY_STRIDE == 0)[:, None, None]
    else:
        z = _follow(keys, geometry[..., 0].double().cpu(), frames)
    z = torch.where(valid, z.clamp_min(MIN_DEPTH), 0)
    return Depth(z=z.float().numpy(), valid=valid.numpy(), metric=False, source=SOURCE)


def _follow(keys: Float[Tensor, "K H W"], video: Float[Tensor, "T H W"], frames: int) -> Float[Tensor, "T H W"]:
    """Depth of every frame from the geometry video: range fitted at the key frames, what remains there interpolated in time."""
    at_keys = video[::KEY_STRIDE]
    inside = (at_keys.abs() < 0.98).flatten()  # beyond, the video is clipped, or shows the sky
    every = max(1, inside.numel() // 20_000)
    normalized, depth = (values.flatten()[inside][::every] for values in (at_keys, keys))
    scale, shift = (0.0, float(keys.median()))
    if len(normalized) > 100 and normalized.std() > 1e-3:
        scale, shift = align.lad_scale_shift(normalized, depth)
    fitted = (scale * video + shift).clamp_min(MIN_DEPTH)
    ratio = (keys / fitted[::KEY_STRIDE]).clamp(1e-2, 1e2).log()
    return fitted * between(ratio, frames).exp()


def _key_flow(
    p_world_next: Float[Tensor, "K H W 3"],
    world_from_key: Float[Tensor, "K 4 4"],
    intrinsics: Float[Tensor, "K 4"],
) -> Float[Tensor, "Q H W 2"]:
    """Where the points of each key frame, moved by their scene flow, are seen in the next; 0 for those behind the camera."""
    height, width = p_world_next.shape[1:3]
    p_next = camera.transform(camera.invert(world_from_key[1:])[:, None, None], p_world_next[:-1])
    in_front = p_next[..., 2] > MIN_DEPTH
    uv = camera.project(torch.where(in_front[..., None], p_next, 1.0), intrinsics[1:, None, None])
    return torch.where(in_front[..., None], uv - camera.pixel_centers(height, width), 0.0)


def _flow(
    geometry: Float[Tensor, "T H W 3"], key_flow: Float[Tensor, "Q H W 2"], min_flow_diagonals: float
) -> Float[Tensor, "P H W 2"]:
    """The geometry video's flow in pixels: its lost magnitude is the one that adds up to the key flow, and at least the floor."""
    normalized = geometry[:-1, ..., 1:]
    steps = normalized.unflatten(0, (len(key_flow), KEY_STRIDE)).sum(1)
    length = steps.norm(dim=-1)
    along = (key_flow * steps).sum(-1) / length.clamp_min(1e-9)
    every = max(1, length.numel() // 20_000)
    floor = min_flow_diagonals * math.hypot(*key_flow.shape[1:3])
    moving = length.flatten()[::every] > 1e-3
    if not moving.any():
        return normalized * floor
    scale = align.lad_scale(length.flatten()[::every][moving], along.flatten()[::every][moving])
    return normalized * max(scale, floor)


def _both_ways(flow: Float[Tensor, "P H W 2"], stride: int) -> Flow:
    forward, backward = flow.float().numpy(), inverse(flow).float().numpy()
    return Flow(forward=forward, backward=backward, stride=stride, source=SOURCE)


def _motion(dynamic: Bool[Tensor, "K H W"], scene_flow: Float[Tensor, "K H W 3"], frames: int) -> Motion:
    """From key to key as predicted; from frame to frame, at key frames only, a quarter of it."""
    nearest = (torch.arange(frames) + KEY_STRIDE // 2) // KEY_STRIDE
    at_key = (torch.arange(frames - 1) % KEY_STRIDE == 0)[:, None, None]
    steps = torch.zeros((frames - 1, *scene_flow.shape[1:]))
    steps[::KEY_STRIDE] = scene_flow[:-1].float() / KEY_STRIDE
    return Motion(
        dynamic=dynamic[nearest.clamp_max(len(dynamic) - 1)].numpy(),
        scene_flow=steps.numpy(),
        scene_flow_valid=at_key.expand(steps.shape[:-1]).numpy().copy(),
        key_scene_flow=scene_flow[:-1].float().numpy(),
        key_scene_flow_valid=torch.ones_like(dynamic[:-1]).numpy(),
        source=SOURCE,
    )
