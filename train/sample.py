"""AnnotatedClip -> Sample -> Batch: torch, at training size, in units of the scene.

Units: depth, points, translations and scene flow are divided by `scale`, the mean distance of the key frames' valid points from the
first camera; flow stays in pixels of the training size. The world is the first camera of the window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from shared import camera
from shared.clip import KEY_STRIDE, AnnotatedClip, Flow, Motion
from train.encoded import Encoded
from train.size import nearest

V = TypeVar("V", "Sample", "Batch")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One training example. What its clip lacked is zero, and its `has_` flag is False.

    Where the window's latents are known, `rgb` holds its first frame alone (T = 1, P = 0), and `depth` and `flow` nothing.
    """

    rgb: UInt8[Tensor, "T H W 3"]
    """8 bits as long as it travels: `unit` makes it -1..1."""
    depth: Float32[Tensor, "T H W"]
    """In the clip's unit, not the scene's: the geometry latent, which alone is made of it, knows no scale."""
    depth_valid: Bool[Tensor, "T H W"]
    """False on the sky as well."""
    flow: Float32[Tensor, "P H W 2"]
    key_flow: Float32[Tensor, "Q H W 2"]
    """Pixels, from key frame to key frame."""
    key_flow_valid: Bool[Tensor, "Q H W"]
    """Forward and backward flow agree."""
    key_depth: Float32[Tensor, "K H W"]
    key_valid: Bool[Tensor, "K H W"]
    points: Float32[Tensor, "K H W 3"]
    """First-camera frame."""
    world_from_cam: Float32[Tensor, "K 4 4"]
    intrinsics: Float32[Tensor, "K 4"]
    dynamic: Bool[Tensor, "K H W"]
    scene_flow: Float32[Tensor, "K H W 3"]
    """To the next key frame, first-camera frame."""
    scene_flow_valid: Bool[Tensor, "K H W"]
    """False for the last key frame, which has no next."""
    scale: Float32[Tensor, ""]
    """Multiplies back to the clip's unit."""
    weight: Float32[Tensor, ""]
    """Of the sample in every loss; 0 for a placeholder."""
    has_depth: Bool[Tensor, ""]
    has_flow: Bool[Tensor, ""]
    has_key_flow: Bool[Tensor, ""]
    has_cameras: Bool[Tensor, ""]
    has_motion: Bool[Tensor, ""]
    id: str
    caption: str

    def to(self, device: torch.device | str) -> "Sample":
        """The sample on another device."""
        return _mapped(self, lambda tensor: tensor.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples of one size, stacked; every field as in `Sample`."""

    rgb: UInt8[Tensor, "B T H W 3"]
    depth: Float32[Tensor, "B T H W"]
    depth_valid: Bool[Tensor, "B T H W"]
    flow: Float32[Tensor, "B P H W 2"]
    key_flow: Float32[Tensor, "B Q H W 2"]
    key_flow_valid: Bool[Tensor, "B Q H W"]
    key_depth: Float[Tensor, "B K H W"]
    key_valid: Bool[Tensor, "B K H W"]
    points: Float[Tensor, "B K H W 3"]
    world_from_cam: Float[Tensor, "B K 4 4"]
    intrinsics: Float[Tensor, "B K 4"]
    dynamic: Bool[Tensor, "B K H W"]
    scene_flow: Float[Tensor, "B K H W 3"]
    scene_flow_valid: Bool[Tensor, "B K H W"]
    scale: Float32[Tensor, " B"]
    weight: Float32[Tensor, " B"]
    has_depth: Bool[Tensor, " B"]
    has_flow: Bool[Tensor, " B"]
    has_key_flow: Bool[Tensor, " B"]
    has_cameras: Bool[Tensor, " B"]
    has_motion: Bool[Tensor, " B"]
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    encoded: Encoded | None = None
    """The latents, where they are known already."""
    cache_names: tuple[str, ...] = ()
    """Under which the samples' latents are to be kept; empty: under none."""

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device; from pinned memory without waiting for it."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, act: Callable[[Tensor], Tensor]) -> "Batch":
        """Every tensor through `act`."""
        return replace(_mapped(self, act), encoded=self.encoded and self.encoded.mapped(act))


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What the decoder says of each key frame, in the units and frames of `Batch`."""

    depth: Float[Tensor, "B K H W"]
    points: Float[Tensor, "B K H W 3"]
    camera: Float[Tensor, "B K 9"]
    """Nine numbers, see `train.pose`."""
    dynamic_logit: Float[Tensor, "B K H W"]
    scene_flow: Float[Tensor, "B K H W 3"]


torch.export.register_dataclass(Predicted)  # sharded and replicated modules look for tensors inside what they return


def _mapped(value: V, act: Callable[[Tensor], Tensor]) -> V:
    """Every tensor through `act`. One number spread over a shape stays one: it has no memory of its own to be pinned or sent."""

    def one(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.numel() and not any(tensor.stride()):
            return act(tensor[(0,) * tensor.ndim].clone()).expand(tensor.shape)
        return act(tensor)

    return replace(value, **{f.name: one(t) for f in fields(value) if isinstance(t := getattr(value, f.name), Tensor)})


def check_size(frames: int, height: int, width: int) -> None:
    """Refuses what the video VAE or the transformer would silently mangle.

    Raises ValueError with the nearest legal size.
    """
    legal = nearest(frames, height, width)
    if legal != (frames, height, width):
        raise ValueError(
            f"{frames}x{height}x{width}: the model asks for 8N + 1 frames, at least 9, and sides that are multiples of 16; "
            f"the nearest is {'x'.join(map(str, legal))}"
        )


@dataclass(frozen=True, kw_only=True)
class _Crop:
    """Resize to cover, crop the center: target pixel = source pixel * scale - offset."""

    height: int
    width: int
    source: tuple[int, int]

    @property
    def resized(self) -> tuple[int, int]:
        cover = max(self.height / self.source[0], self.width / self.source[1])
        return max(self.height, round(self.source[0] * cover)), max(self.width, round(self.source[1] * cover))

    @property
    def scale_uv(self) -> np.ndarray:
        return np.array([self.resized[1] / self.source[1], self.resized[0] / self.source[0]])

    @property
    def offset_uv(self) -> np.ndarray:
        return np.array([(self.resized[1] - self.width) // 2, (self.resized[0] - self.height) // 2])

    def nearest(self, maps: np.ndarray) -> np.ndarray:
        """Maps `N H W ...` at the target size, each pixel the nearest of the source: geometry is never mixed across edges."""
        (sx, sy), (ox, oy) = self.scale_uv, self.offset_uv
        if self.resized == self.source:  # a copy only where torch needs one
            return np.require(maps[:, oy : oy + self.height, ox : ox + self.width], requirements=["C", "W"])
        rows = ((np.arange(self.height) + 0.5 + oy) / sy).astype(np.int64)
        columns = ((np.arange(self.width) + 0.5 + ox) / sx).astype(np.int64)
        return maps.take(rows, axis=1).take(columns, axis=2)

    def flow(self, flow: np.ndarray) -> np.ndarray:
        resized = self.nearest(flow)
        return resized if self.resized == self.source else resized * self.scale_uv.astype(np.float32)

    def intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        return intrinsics * np.tile(self.scale_uv, 2) - np.concatenate((np.zeros(2), self.offset_uv))

    def rgb(self, rgb: np.ndarray) -> UInt8[Tensor, "T H W 3"]:
        """An image that has the size already is not resampled."""
        ox, oy = self.offset_uv
        if self.resized == self.source:
            return torch.from_numpy(self.nearest(rgb))
        image = torch.tensor(rgb).permute(0, 3, 1, 2)
        image = F.interpolate(image, self.resized, mode="bilinear", antialias=True, align_corners=False)
        return image[:, :, oy : oy + self.height, ox : ox + self.width].permute(0, 2, 3, 1).contiguous()


def from_clip(
    clip: AnnotatedClip,
    frames: int,
    height: int,
    width: int,
    *,
    start: int = 0,
    first: UInt8[Tensor, "H W 3"] | None = None,
) -> Sample:
    """The window of `frames` from frame `start` on, covered, center-cropped and scale-normalized.

    `first` is the window's first frame as it comes out, where its latents are known: no other pixel is touched then.

    Raises ValueError if the size is not one of the model's, or the clip is too short for the window.
    """
    check_size(frames, height, width)
    _check_window(clip, frames, start)
    crop = _Crop(height=height, width=width, source=clip.shape[1:])
    window, keys = slice(start, start + frames), slice(start, start + frames, KEY_STRIDE)
    depth, depth_valid = _depth(clip)
    world_from_cam, intrinsics = _cameras(clip, crop, keys)
    points, key_valid = _points(clip, crop, keys, depth_valid, world_from_cam, intrinsics)
    first_from_world = _first_from_world(clip, start)
    dynamic, scene_flow, scene_flow_valid = _motion(clip.motion, crop, keys, first_from_world, clip.shape)
    key_flow, key_flow_valid = _key_flow(clip.key_flow, crop, keys, clip.shape)
    key_depth = _nothing(*key_valid.shape) if clip.depth is None else torch.from_numpy(crop.nearest(depth[keys]))
    scale = _scale(points if clip.cameras is not None else key_depth[..., None], key_valid)
    has_cameras = torch.tensor(clip.cameras is not None)
    if first is not None:
        window, frames = slice(start, start + 1), 1
    return Sample(
        rgb=crop.rgb(clip.rgb[window]) if first is None else first[None],
        depth=_nothing(frames, height, width) if clip.depth is None else torch.from_numpy(crop.nearest(depth[window])),
        depth_valid=torch.from_numpy(crop.nearest(depth_valid[window])),
        flow=_flow(clip.flow, crop, slice(start, start + frames - 1), (frames - 1, height, width)),
        key_flow=key_flow,
        key_flow_valid=key_flow_valid,
        key_depth=_over(key_depth, scale),
        key_valid=key_valid,
        points=_over(points, scale),
        world_from_cam=_scaled(world_from_cam, scale),
        intrinsics=intrinsics.float(),
        dynamic=dynamic,
        scene_flow=_over(scene_flow, scale),
        scene_flow_valid=scene_flow_valid & has_cameras,
        scale=scale,
        weight=torch.ones(()),
        has_depth=key_valid.any(),
        has_flow=torch.tensor(clip.flow is not None),
        has_key_flow=torch.tensor(clip.key_flow is not None),
        has_cameras=has_cameras,
        has_motion=torch.tensor(clip.motion is not None),
        id=clip.id,
        caption=clip.caption,
    )


def image(rgb: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> Float32[Tensor, "H W 3"]:
    """One picture at the training size, -1..1: what a clip's first frame would become."""
    return unit(_Crop(height=height, width=width, source=(rgb.shape[0], rgb.shape[1])).rgb(rgb[None])[0])


def unit(rgb: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """-1..1, as networks see pixels."""
    return rgb.float().div_(127.5).sub_(1)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU from pinned memory, because a copy from any other waits for all that the GPU has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def placeholder(
    frames: int, height: int, width: int, *, id: str, reason: str = "", first: UInt8[Tensor, "H W 3"] | None = None
) -> Sample:
    """Stands where a sample could not be read: finite numbers, weight 0, so that every later sample keeps its position."""
    check_size(frames, height, width)
    empty = AnnotatedClip(
        id=id,
        rgb=np.zeros((frames, height, width, 3), np.uint8),
        fps=8.0,
        source=reason,
        frames=np.arange(frames),
    )
    return replace(from_clip(empty, frames, height, width, first=first), weight=torch.zeros(()))


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as a batch. Raises ValueError if their sizes differ."""
    sizes = {tuple(sample.rgb.shape) for sample in samples}
    if len(sizes) != 1:
        raise ValueError(f"a batch of {len(samples)} samples holds the sizes {sorted(sizes)}, expected one size")
    names = [f.name for f in fields(Sample) if f.name not in ("id", "caption")]
    columns = {name: [getattr(sample, name) for sample in samples] for name in names}
    stacked: dict[str, Any] = {
        name: torch.stack(column) if len(column) > 1 else column[0][None] for name, column in columns.items()
    }
    return Batch(**stacked, ids=tuple(s.id for s in samples), captions=tuple(s.caption for s in samples))


def _check_window(clip: AnnotatedClip, frames: int, start: int) -> None:
    if start < 0 or start % KEY_STRIDE or start + frames > len(clip.rgb):
        raise ValueError(
            f"{clip.id}: a window of {frames} frames from frame {start} was asked for, of {len(clip.rgb)} frames;"
            f" windows start at multiples of {KEY_STRIDE}"
        )


def _depth(clip: AnnotatedClip) -> tuple[np.ndarray, np.ndarray]:
    """z, and where it is valid and not of the sky."""
    if clip.depth is None:
        return np.broadcast_to(np.float32(0), clip.shape), np.broadcast_to(np.False_, clip.shape)
    sky = None if clip.motion is None else clip.motion.sky
    return clip.depth.z, clip.depth.valid if sky is None else clip.depth.valid & ~sky


def _cameras(clip: AnnotatedClip, crop: _Crop, keys: slice) -> tuple[Float[Tensor, "K 4 4"], Float[Tensor, "K 4"]]:
    """Float64, of the key frames; world = the window's first camera. Without cameras: the identity and a plain lens."""
    if clip.cameras is None:
        num = len(range(*keys.indices(clip.shape[0])))
        plain = [float(crop.width), float(crop.width), crop.width / 2, crop.height / 2]
        return torch.eye(4).double().repeat(num, 1, 1), torch.tensor(plain).double().repeat(num, 1)
    world_from_cam = torch.from_numpy(clip.cameras.world_from_cam[keys].copy())
    intrinsics = torch.from_numpy(crop.intrinsics(clip.cameras.intrinsics[keys]))
    return camera.invert(world_from_cam[0]) @ world_from_cam, intrinsics


def _first_from_world(clip: AnnotatedClip, start: int) -> Float[Tensor, "4 4"]:
    if clip.cameras is None:
        return torch.eye(4).double()
    return camera.invert(torch.from_numpy(clip.cameras.world_from_cam[start].copy()))


def _points(
    clip: AnnotatedClip,
    crop: _Crop,
    keys: slice,
    depth_valid: np.ndarray,
    world_from_cam: Float[Tensor, "K 4 4"],
    intrinsics: Float[Tensor, "K 4"],
) -> tuple[Float32[Tensor, "K H W 3"], Bool[Tensor, "K H W"]]:
    valid = torch.from_numpy(crop.nearest(depth_valid[keys]))
    if clip.cameras is None or (clip.depth is None and clip.points is None):
        return _nothing(*valid.shape, 3), valid
    if clip.points is not None:
        valid = valid & torch.from_numpy(crop.nearest(clip.points.valid[keys]))
        p_cam = torch.from_numpy(crop.nearest(clip.points.p_cam[keys])).double()
        points = camera.transform(world_from_cam[:, None, None], p_cam).float()
    else:
        assert clip.depth is not None
        points = torch.empty((*valid.shape, 3))
        for k, z in enumerate(torch.from_numpy(crop.nearest(clip.depth.z[keys]))):  # one by one: they fit a cache
            points[k] = camera.pointmap(z[None].double(), world_from_cam[k, None], intrinsics[k, None])[0]
    return points.masked_fill_(~valid[..., None], 0), valid


def _scale(points: Tensor, valid: Bool[Tensor, "K H W"]) -> Float32[Tensor, ""]:
    """The mean length of valid points; summed in float64, without picking them out, which would copy them."""
    count = int(valid.count_nonzero())
    if not count:
        return torch.ones(())
    squares = sum((axis * axis for axis in points.unbind(-1)), torch.zeros(()))
    return (squares.sqrt_().masked_fill_(~valid, 0).sum(dtype=torch.float64) / count).float()


def _nothing(*shape: int) -> Float32[Tensor, "..."]:
    """Zeros that take no memory, nor time on the way from one process to another."""
    return torch.zeros(()).expand(shape)


def _over(values: Float32[Tensor, "*shape"], scale: Float32[Tensor, ""]) -> Float32[Tensor, "*shape"]:
    return values / scale if any(values.stride()) else values  # nothing stays nothing


def _scaled(world_from_cam: Float[Tensor, "K 4 4"], scale: Float32[Tensor, ""]) -> Float32[Tensor, "K 4 4"]:
    scaled = world_from_cam.clone()
    scaled[:, :3, 3] /= scale.double()
    return scaled.float()


def _flow(flow: Flow | None, crop: _Crop, pairs: slice, shape: tuple[int, int, int]) -> Float32[Tensor, "P H W 2"]:
    return _nothing(*shape, 2) if flow is None else torch.from_numpy(crop.flow(flow.forward[pairs]))


def _key_flow(
    flow: Flow | None, crop: _Crop, keys: slice, shape: tuple[int, int, int]
) -> tuple[Float32[Tensor, "Q H W 2"], Bool[Tensor, "Q H W"]]:
    pairs = _key_pairs(keys)
    if flow is None:
        empty = _nothing(pairs.stop - pairs.start, crop.height, crop.width, 2)
        return empty, torch.zeros((), dtype=torch.bool).expand(empty.shape[:-1])
    from shared import warp  # the one home of the forward-backward test

    ok = warp.cycle_ok(torch.tensor(flow.forward[pairs]), torch.tensor(flow.backward[pairs]))
    return torch.from_numpy(crop.flow(flow.forward[pairs])), torch.from_numpy(crop.nearest(ok.numpy()))


def _motion(
    motion: Motion | None, crop: _Crop, keys: slice, first_from_world: Tensor, shape: tuple[int, int, int]
) -> tuple[Bool[Tensor, "K H W"], Float32[Tensor, "K H W 3"], Bool[Tensor, "K H W"]]:
    pairs = _key_pairs(keys)
    num = pairs.stop - pairs.start + 1
    dynamic = torch.zeros((num, crop.height, crop.width), dtype=torch.bool)
    scene_flow, valid = _nothing(*dynamic.shape, 3), torch.zeros_like(dynamic)
    if motion is None:
        return dynamic, scene_flow, valid
    dynamic = torch.from_numpy(crop.nearest(motion.dynamic[keys]))
    if motion.key_scene_flow is not None and motion.key_scene_flow_valid is not None:
        scene_flow = torch.zeros((*dynamic.shape, 3))
        valid[:-1] = torch.from_numpy(crop.nearest(motion.key_scene_flow_valid[pairs]))
        rotation = first_from_world[:3, :3].float().transpose(0, 1)
        torch.matmul(torch.from_numpy(crop.nearest(motion.key_scene_flow[pairs])), rotation, out=scene_flow[:-1])
        scene_flow.masked_fill_(~valid[..., None], 0)
    return dynamic, scene_flow, valid


def _key_pairs(keys: slice) -> slice:
    return slice(keys.start // KEY_STRIDE, (keys.stop - 1) // KEY_STRIDE)
