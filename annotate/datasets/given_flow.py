"""A data set's own flow: laid into a clip's slots, turned round where no way back is given, and strung together for key frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from annotate.datasets.dataset import Field
from shared import camera, codecs, warp
from shared.clip import KEY_STRIDE, AnnotatedClip, Flow

UNKNOWN_FLOW_PX = 8.0
"""The uncertainty of flow where a data set gives none: what asks for certain flow passes it over."""
LONGEST_RIGID_PX = 500.0
SMOOTH_PX = 0.5
"""Flow of four pixels around that differs by less is one surface's: between them is interpolated."""


@dataclass(frozen=True)
class Given:
    """Fields between adjacent frames and between key frames, there and back; None: not given."""

    forward: Sequence[Field | None]
    backward: Sequence[Field | None]
    key_forward: Sequence[Field | None]
    key_backward: Sequence[Field | None]

    def completed(self, clip: AnnotatedClip, *, static: bool) -> "Given":
        """With what follows from what is given.

        A still world's flow follows from depth and cameras. Where a data set gives no way back, it is the way there turned round;
        between key frames it is the way over the frames between them.
        """
        if static and clip.depth is not None and clip.cameras is not None:
            slots = (
                (self.forward, 1, True),
                (self.backward, 1, False),
                (self.key_forward, KEY_STRIDE, True),
                (self.key_backward, KEY_STRIDE, False),
            )
            return Given(
                *(
                    [given or still for given, still in zip(fields, _still(clip, stride, ahead=ahead))]
                    for fields, stride, ahead in slots
                )
            )
        forward, backward = self.forward, self.backward
        key_forward, key_backward = self.key_forward, self.key_backward
        if _none_missing(forward):
            key_forward = [given or _strung(forward, backward, p) for p, given in enumerate(key_forward)]
            if _none_missing(backward):
                key_backward = [given or _strung_back(forward, backward, p) for p, given in enumerate(key_backward)]
        backward, key_backward = (
            _turned(clip, forward, backward, 1),
            _turned(clip, key_forward, key_backward, KEY_STRIDE),
        )
        return Given(forward, backward, key_forward, key_backward)

    def laid_into(self, clip: AnnotatedClip, source: str) -> AnnotatedClip:
        """The clip with `flow` and `key_flow`, each if it is known of all of its pairs."""
        flow = _flow(clip, self.forward, self.backward, 1, source)
        key_flow = _flow(clip, self.key_forward, self.key_backward, KEY_STRIDE, source)
        return clip.with_(flow=flow or clip.flow, key_flow=key_flow or clip.key_flow)


def _none_missing(fields: Sequence[Field | None]) -> bool:
    return bool(fields) and all(field is not None for field in fields)


def _turned(
    clip: AnnotatedClip, there: Sequence[Field | None], back: Sequence[Field | None], stride: int
) -> list[Field | None]:
    """Ways back, those that are not given made of the ways there."""
    z = clip.depth.z if clip.depth is not None else np.ones(clip.shape, np.float32)
    return [
        known or (turned(field, z[p * stride]) if field is not None else None)
        for p, (field, known) in enumerate(zip(there, back))
    ]


def _flow(
    clip: AnnotatedClip, forward: Sequence[Field | None], backward: Sequence[Field | None], stride: int, source: str
) -> Flow | None:
    """Given flow of every pair. Where it is not known it is what a rigid world shows, and uncertain."""
    if not _none_missing(forward) or not _none_missing(backward):
        return None
    first, second = _ways(clip, stride)
    ahead, back = rigid(clip, first, second)[0], rigid(clip, second, first)[0]
    uncertain = np.stack([~f.valid | (f.hidden if f.hidden is not None else False) for f in forward if f is not None])
    return Flow(
        forward=_filled(forward, ahead),
        backward=_filled(backward, back),
        stride=stride,
        uncertainty=np.where(uncertain, UNKNOWN_FLOW_PX, 0).astype(np.float32) if uncertain.any() else None,
        source=source,
    )


def _filled(
    fields: Sequence[Field | None], otherwise: Float32[np.ndarray, "P H W 2"]
) -> Float32[np.ndarray, "P H W 2"]:
    known = [field for field in fields if field is not None]
    return np.stack([np.where(f.valid[..., None], bounded(f.values), o) for f, o in zip(known, otherwise)])


def bounded(flow: Float32[np.ndarray, "H W 2"]) -> Float32[np.ndarray, "H W 2"]:
    """No longer than the picture's diagonal: it leads out of the picture all the same, and what passes the camera has no bound."""
    longest = min(np.hypot(*flow.shape[:2]), codecs.LONGEST_FLOW_PX)
    length = np.linalg.norm(flow, axis=-1, keepdims=True)
    return flow * np.minimum(1, np.float32(longest) / np.maximum(length, np.float32(1)))


def rigid(
    clip: AnnotatedClip, here: Int64[np.ndarray, " P"], there: Int64[np.ndarray, " P"]
) -> tuple[Float32[np.ndarray, "P H W 2"], Bool[np.ndarray, "P H W"]]:
    """Flow of a still world between these frames, and where it is known; 0 where depth or cameras are missing."""
    if clip.depth is None or clip.cameras is None:
        nothing = np.zeros((len(here), *clip.shape[1:]), bool)
        return np.zeros((*nothing.shape, 2), np.float32), nothing
    z, valid = torch.from_numpy(clip.depth.z[here]).double(), torch.from_numpy(clip.depth.valid[here])
    world_from_cam = torch.from_numpy(clip.cameras.world_from_cam)
    intrinsics = torch.from_numpy(clip.cameras.intrinsics)
    there_from_here = camera.invert(world_from_cam[there]) @ world_from_cam[here]
    flow, z_there = camera.rigid_flow(torch.where(valid, z, 1.0), there_from_here, intrinsics[here], intrinsics[there])
    seen = valid & (z_there > 0.05 * z)
    flow = torch.where(seen[..., None], flow, 0.0)
    seen &= flow.abs().amax(-1) < LONGEST_RIGID_PX
    return flow.clamp(-LONGEST_RIGID_PX, LONGEST_RIGID_PX).float().numpy(), seen.numpy()


def _ways(clip: AnnotatedClip, stride: int) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """First and second frames of the pairs of a stride."""
    starts = np.arange(0, clip.shape[0] - stride, stride, dtype=np.int64)
    return starts, starts + stride


def _still(clip: AnnotatedClip, stride: int, *, ahead: bool) -> list[Field]:
    first, second = _ways(clip, stride)
    values, valid = rigid(clip, first, second) if ahead else rigid(clip, second, first)
    return [Field(values=one, valid=known) for one, known in zip(values, valid)]


def turned(field: Field, z: Float32[np.ndarray, "H W"]) -> Field:
    """The way back from the pixel that each pixel's flow ends on; where several end, the nearest surface's."""
    starts, ends = landed(field, z)
    values, valid = np.zeros_like(field.values), np.zeros_like(field.valid)
    values[ends], valid[ends] = -field.values[starts], True
    return Field(values=values, valid=valid)


Places = tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]
"""Rows and columns."""


def landed(field: Field, z: Float32[np.ndarray, "H W"]) -> tuple[Places, Places]:
    """Pixels and where their flow ends, far ones first, so that near ones are written over them; what hides is left out."""
    height, width = z.shape
    row, column = np.nonzero(field.valid if field.hidden is None else field.valid & ~field.hidden)
    far_first = np.argsort(-z[row, column], kind="stable")
    row, column = row[far_first], column[far_first]
    flow = field.values[row, column]
    to_column, to_row = np.floor(column + 0.5 + flow[:, 0]), np.floor(row + 0.5 + flow[:, 1])
    inside = (to_column >= 0) & (to_column < width) & (to_row >= 0) & (to_row < height)
    ends = to_row[inside].astype(np.int64), to_column[inside].astype(np.int64)
    return (row[inside], column[inside]), ends


def _strung(forward: Sequence[Field | None], backward: Sequence[Field | None], p: int) -> Field:
    """Over the frames from key frame p to the next."""
    frames = range(p * KEY_STRIDE, (p + 1) * KEY_STRIDE)
    return strung([_field(forward[t]) for t in frames], [backward[t] for t in frames])


def _strung_back(forward: Sequence[Field | None], backward: Sequence[Field | None], p: int) -> Field:
    frames = range((p + 1) * KEY_STRIDE - 1, p * KEY_STRIDE - 1, -1)
    return strung([_field(backward[t]) for t in frames], [forward[t] for t in frames])


def _field(field: Field | None) -> Field:
    assert field is not None
    return field


def strung(steps: Sequence[Field], backs: Sequence[Field | None]) -> Field:
    """One field for several steps: each pixel's flow is followed from frame to frame, as long as it is seen.

    Valid where the four pixels around every stop tell of one surface, nothing hides it, and the way back (where it is given)
    leads back.
    """
    centers = camera.pixel_centers(*steps[0].valid.shape)
    places = centers.clone()
    valid = torch.ones(steps[0].valid.shape, dtype=torch.bool)
    for step, back in zip(steps, backs):
        values, known = _at(step, places, seen=True)
        ends = places + values
        valid &= known & warp.in_bounds(ends, *valid.shape)
        if back is not None:
            returned, told = _at(back, ends, seen=False)
            cycle = (values + returned).square().sum(-1)
            valid &= ~told | (cycle < 0.01 * (values.square().sum(-1) + returned.square().sum(-1)) + 0.5)
        places = torch.where(valid[..., None], ends, places)
    values = torch.where(valid[..., None], places - centers, 0.0).float().numpy()
    return Field(values=values, valid=valid.numpy())


def _at(
    field: Field, places: Float64[torch.Tensor, "H W 2"], *, seen: bool
) -> tuple[Float64[torch.Tensor, "H W 2"], Bool[torch.Tensor, "H W"]]:
    """The field at these places, and where the pixels around belong together; `seen`: and are not hidden at its end."""
    good = field.valid & ~field.hidden if seen and field.hidden is not None else field.valid
    import cv2

    box = np.ones((2, 2), np.uint8)  # pixel (i, j) and the ones before it: those around the corner at (i, j)
    spread = np.zeros(good.shape, np.float32)
    for channel in np.moveaxis(np.where(good[..., None], field.values, 0), -1, 0):
        channel = np.ascontiguousarray(channel, np.float32)
        spread = np.maximum(spread, cv2.dilate(channel, box) - cv2.erode(channel, box))
    whole = (cv2.erode(good.astype(np.uint8), box) > 0) & (spread < SMOOTH_PX)
    corner = (places + 0.5).floor()
    exactly = ((places - 0.5) - (places - 0.5).round()).abs().amax(-1) < 1e-6
    image = torch.from_numpy(np.stack((whole, good), -1).astype(np.float64))
    together = warp.sample(image[..., :1], corner + 0.5, mode="nearest")[..., 0] > 0.5
    alone = warp.sample(image[..., 1:], places, mode="nearest")[..., 0] > 0.5
    values = warp.sample(torch.from_numpy(field.values).double(), places)
    return values, torch.where(exactly, alone, together)
