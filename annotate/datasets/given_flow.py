"""A data set's own flow: laid into a clip's slots, turned round where no way back is given, and strung together for key frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from annotate.datasets.dataset import Field
from shared import camera, codecs, warp
from shared.clip import KEY_STRIDE, AnnotatedClip, Flow

UNKNOWN_FLOW_PX = 8.0
"""The uncertainty of flow where a data set gives none: what asks for certain flow passes it over."""
LONGEST_RIGID_PX = 500.0
SMOOTH_PX = 0.5
"""Flow that differs by less among a pixel and the eight around it is one surface's: between them is interpolated."""


@dataclass(frozen=True)
class Given:
    """Fields between adjacent frames and between key frames, there and back; None: not given."""

    forward: list[Field | None]
    backward: list[Field | None]
    key_forward: list[Field | None]
    key_backward: list[Field | None]

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
            return Given(*(_still(clip, fields, stride, ahead=ahead) for fields, stride, ahead in slots))
        forward, backward = self.forward, self.backward
        key_forward: list[Field | None] = self.key_forward
        key_backward: list[Field | None] = self.key_backward
        ahead = [field for field in forward if field is not None]
        back = [field for field in backward if field is not None]
        if len(ahead) == len(forward) and not all(key_forward):
            key_forward = [given or made for given, made in zip(key_forward, _strung(ahead, backward))]
        if len(back) == len(forward) == len(ahead) and not all(key_backward):
            first = len(key_backward) * KEY_STRIDE  # frames after the last key frame lead to none
            made = _strung(back[:first][::-1], ahead[:first][::-1])[::-1]
            key_backward = [given or one for given, one in zip(key_backward, made)]
        backward, key_backward = (
            _turned(clip, forward, backward, 1),
            _turned(clip, key_forward, key_backward, KEY_STRIDE),
        )
        return Given(forward, backward, key_forward, key_backward)

    def laid_into(self, clip: AnnotatedClip, source: str) -> AnnotatedClip:
        """The clip with `flow` and `key_flow`, each if it is known of all of its pairs; the fields then are views of them."""
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
    clip: AnnotatedClip, forward: list[Field | None], backward: list[Field | None], stride: int, source: str
) -> Flow | None:
    """Given flow of every pair. Where it is not known it is what a rigid world shows, and uncertain."""
    if not _none_missing(forward) or not _none_missing(backward):
        return None
    uncertain = np.stack([~f.seen for f in forward if f is not None])
    return Flow(
        forward=_filled(clip, forward, stride, ahead=True),
        backward=_filled(clip, backward, stride, ahead=False),
        stride=stride,
        uncertainty=uncertain.astype(np.float32) * np.float32(UNKNOWN_FLOW_PX) if uncertain.any() else None,
        source=source,
    )


def _filled(
    clip: AnnotatedClip, fields: list[Field | None], stride: int, *, ahead: bool
) -> Float32[np.ndarray, "P H W 2"]:
    """All of them in one array, whose parts take the place of what the fields held: no flow lies in memory twice."""
    out = np.zeros((len(fields), *clip.shape[1:], 2), np.float32)
    for p, field in enumerate(fields):
        assert field is not None
        out[p] = bounded(field.values)
        if not field.valid.all():
            here, there = np.array([p * stride]), np.array([(p + 1) * stride])
            still = rigid(clip, here, there)[0][0] if ahead else rigid(clip, there, here)[0][0]
            out[p] = np.where(field.valid[..., None], out[p], still)
        fields[p] = replace(field, values=out[p])
    return out


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


def _still(clip: AnnotatedClip, fields: Sequence[Field | None], stride: int, *, ahead: bool) -> list[Field | None]:
    """The fields, those that are not given as a still world's; pair by pair, since all of a clip in float64 takes gigabytes."""
    out: list[Field | None] = []
    for p, given in enumerate(fields):
        first, second = np.array([p * stride]), np.array([(p + 1) * stride])
        if given is None:
            values, valid = rigid(clip, first, second) if ahead else rigid(clip, second, first)
            given = Field(values=values[0], valid=valid[0])
        out.append(given)
    return out


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
    row, column = np.nonzero(field.seen)
    far_first = np.argsort(-z[row, column], kind="stable")
    row, column = row[far_first], column[far_first]
    flow = field.values[row, column]
    to_column, to_row = np.floor(column + 0.5 + flow[:, 0]), np.floor(row + 0.5 + flow[:, 1])
    inside = (to_column >= 0) & (to_column < width) & (to_row >= 0) & (to_row < height)
    ends = to_row[inside].astype(np.int64), to_column[inside].astype(np.int64)
    return (row[inside], column[inside]), ends


def _strung(steps: Sequence[Field], backs: Sequence[Field | None]) -> list[Field]:
    """From each key frame to the next, over the frames between; `backs` lead back from where `steps` lead."""
    images = [_smooth(step) for step in steps]
    returns = [None if back is None else _smooth(back) for back in backs]
    starts = range(0, len(steps) - KEY_STRIDE + 1, KEY_STRIDE)
    return [_followed(steps[s], images[s : s + KEY_STRIDE], returns[s : s + KEY_STRIDE]) for s in starts]


def _followed(
    first: Field, images: Sequence[Float32[Tensor, "H W 3"]], returns: Sequence[Float32[Tensor, "H W 3"] | None]
) -> Field:
    """One field for several steps: each pixel's flow is followed from frame to frame, as long as it is seen.

    Valid where the pixels around every stop tell of one surface, nothing hides it, and the way back (where it is given)
    leads back.
    """
    centers = camera.pixel_centers(*first.valid.shape).float()
    places, valid = centers, torch.from_numpy(first.seen)
    for number, (image, back) in enumerate(zip(images, returns)):
        step, known = _at(image, places) if number else (torch.from_numpy(first.values), valid)
        ends = places + step
        valid = valid & known & warp.in_bounds(ends, *valid.shape)
        if back is not None:
            returned, told = _at(back, ends)
            lengths = step.square().sum(-1) + returned.square().sum(-1)
            valid &= ~told | ((step + returned).square().sum(-1) < 0.01 * lengths + 0.5)
        places = torch.where(valid[..., None], ends, centers)
    values = torch.where(valid[..., None], places - centers, 0.0)
    return Field(values=values.numpy(), valid=valid.numpy())


def _smooth(field: Field) -> Float32[Tensor, "H W 3"]:
    """u, v, and 1 where the eight pixels around tell of the same surface, and it is seen."""
    import cv2

    box = np.ones((3, 3), np.uint8)
    spread = [cv2.dilate(part, box) - cv2.erode(part, box) for part in cv2.split(field.values)]
    whole = (cv2.erode(field.seen.astype(np.uint8), box) > 0) & (np.maximum(*spread) < SMOOTH_PX)
    return torch.from_numpy(np.concatenate((field.values, whole[..., None].astype(np.float32)), axis=-1))


def _at(
    image: Float32[Tensor, "H W 3"], places: Float32[Tensor, "H W 2"]
) -> tuple[Float32[Tensor, "H W 2"], Bool[Tensor, "H W"]]:
    found = warp.sample(image, places)
    return found[..., :2], found[..., 2] > 0.999
