"""What moves in a scene with truth: by its scene flow, by its tracks, or by whether it is still where it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from annotate.datasets import given_flow
from annotate.datasets.dataset import Field, Tracks
from shared import camera, warp
from shared.clip import KEY_STRIDE, AnnotatedClip

LEAST_M, LEAST_OF_Z = 0.002, 0.002
"""Scene flow shorter than either is none: rounding of what is given exactly."""
TRACK_M, TRACK_OF_Z = 0.010, 0.005
"""The same of tracks and rounded depth."""
LEAST_PX, LEAST_OF_FLOW, TIMES_USUAL = 0.1, 0.01, 15.0
"""Given flow that is farther from a still world's moves; the distance that a quarter of the pixels stay below stands for how exact
flow, depth and cameras are: in a close-up most of them move."""
AGREEMENT = 0.02
"""A track lies on what its pixel shows if their depths differ by less than this share."""
HIDES = 0.05
"""Another surface nearer by this share hides a point."""
STILL_SHARE, STILL_SHARE_SHARP = 0.95, 0.55
"""Of an instance's pixels that are found again at their place of the world, give or take a pixel, or exactly: fewer, and it moves.

In the tests' worlds, walls with furniture before them stay above 0.96 and 0.56 while the camera goes around them, and a box that
sways by two pixels comes down to 0.91 and 0.36.
"""
_FEWEST, _FEWEST_TRACKS = 20, 5
"""Pixels that can decide by their depth, tracks (or pixels with flow) that can by where they lead."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A clip's tracks and where they are in its pictures."""

    tracks: Tracks
    places: Float64[np.ndarray, "T N 3"]
    """(u, v, z)."""
    inside: Bool[np.ndarray, "T N"]
    """Visible, and on the picture."""
    height: int
    width: int

    @property
    def pixels(self) -> tuple[Int64[np.ndarray, "T N"], Int64[np.ndarray, "T N"]]:
        """Row and column, (0, 0) where not inside."""
        column, row = np.where(self.inside, self.places[..., :2].transpose(2, 0, 1), 0).astype(np.int64)
        return np.minimum(row, self.height - 1), np.minimum(column, self.width - 1)


def moving(
    clip: AnnotatedClip,
    scene_flow: list[Field | None],
    key_scene_flow: list[Field | None],
    instances: Int32[np.ndarray, "T H W"] | None,
    seen: Seen | None,
    flows: given_flow.Given,
    *,
    static: bool,
) -> Bool[np.ndarray, "T H W"] | None:
    """Pixels on what moves; None where the data set cannot tell, so that annotators must."""
    if static:
        return np.zeros(clip.shape, bool)
    if any(field is not None for field in scene_flow):
        return _by_scene_flow(clip, scene_flow, key_scene_flow, instances, flows.forward)
    if clip.depth is None or clip.cameras is None:
        return None
    if instances is None:
        return _by_flow(clip, flows)
    told = _by_tracks(instances, seen) if seen is not None else {}
    odd = [None if field is None else _odd(clip, field, t, t + 1) for t, field in enumerate(flows.forward)]

    def moves(where: Bool[np.ndarray, "T H W"]) -> bool:
        return _flows_oddly(where, odd, flows.forward) or _left(clip, where)

    able = np.zeros(int(instances.max(initial=0)) + 1, bool)
    for number in range(1, len(able)):
        able[number] = told[number] if number in told else moves(instances == number)
    return looked_up(able, instances)


def looked_up(table: np.ndarray, ids: Int32[np.ndarray, "T H W"]) -> np.ndarray:
    """The table's values of all ids, frame by frame: indexing with a whole clip would copy it to 64 bits."""
    found = np.empty(ids.shape, table.dtype)
    for t, frame in enumerate(ids):
        found[t] = table[frame]
    return found


def _flows_oddly(
    where: Bool[np.ndarray, "T H W"], odd: list[Bool[np.ndarray, "H W"] | None], forward: Sequence[Field | None]
) -> bool:
    """Whether the given flow of most of an instance's pixels is not a still world's, in a frame that shows enough of it."""
    for on, moves, field in zip(where, odd, forward):
        if moves is not None and field is not None:
            known = on & field.seen
            if known.sum() >= _FEWEST_TRACKS and (moves & known).sum() > 0.5 * known.sum():
                return True
    return False


def _unit(clip: AnnotatedClip) -> float:
    """What a meter is in the clip's unit, for thresholds: where it is not known, a twentieth of the median depth stands in."""
    if clip.depth is None or clip.depth.metric or not clip.depth.valid.any():
        return 1.0
    return float(np.median(clip.depth.z[clip.depth.valid])) / 20


def _by_scene_flow(
    clip: AnnotatedClip,
    fields: list[Field | None],
    key_fields: list[Field | None],
    instances: Int32[np.ndarray, "T H W"] | None,
    forward: Sequence[Field | None],
) -> Bool[np.ndarray, "T H W"]:
    """Pixels whose displacement is more than rounding; where it is not known, those of an instance that moves.

    Of a key frame also those that move until the next one: its scene flow is told as far as that. A last frame without any takes
    over what the flow before it carries there.
    """
    unit = _unit(clip)
    z = clip.depth.z if clip.depth is not None else np.zeros(clip.shape, np.float32)
    dynamic = np.zeros(clip.shape, bool)
    for t, field in [*enumerate(fields), *zip(range(0, len(fields), KEY_STRIDE), key_fields)]:
        if field is not None:
            far = np.linalg.norm(field.values, axis=-1) > np.maximum(LEAST_M * unit, LEAST_OF_Z * z[t])
            dynamic[t] |= far & field.valid
    if instances is None:
        if fields[-1] is None and len(forward) and (last := forward[-1]) is not None and clip.depth is not None:
            dynamic[-1] = _carried(clip, last, dynamic[-2])
        return dynamic
    for number in range(1, int(instances.max(initial=0)) + 1):
        where = instances == number
        known = np.stack(
            [w & field.valid if field is not None else np.zeros_like(w) for w, field in zip(where, fields)]
        )
        if known.any() and (dynamic & known).sum() > 0.5 * known.sum():
            dynamic |= where & ~known
    return dynamic & (instances > 0)


def _by_flow(clip: AnnotatedClip, flows: given_flow.Given) -> Bool[np.ndarray, "T H W"] | None:
    """Pixels whose given flow is not what a still world shows; None where a frame has no flow.

    Where no flow leads on from the last frame, it takes over what the flow before it carries there.
    """
    if clip.shape[0] < 2 or any(field is None for field in flows.forward):
        return None
    dynamic = np.zeros(clip.shape, bool)
    for t, field in enumerate(flows.forward):
        assert field is not None
        dynamic[t] = _odd(clip, field, t, t + 1)
    assert flows.forward[-1] is not None
    dynamic[-1] = _carried(clip, flows.forward[-1], dynamic[-2])
    return dynamic


def _carried(clip: AnnotatedClip, last: Field, dynamic: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Where the pixels that move in the last frame but one are in the last."""
    assert clip.depth is not None
    starts, ends = given_flow.landed(last, clip.depth.z[-2])
    carried, reached = np.zeros(clip.shape[1:], bool), np.zeros(clip.shape[1:], bool)
    carried[ends], reached[ends] = dynamic[starts], True
    return carried | (_closed(carried) & ~reached)


def _odd(clip: AnnotatedClip, field: Field, t: int, other: int) -> Bool[np.ndarray, "H W"]:
    """Clearly more than the best quarter of the pixels, which stands still, and more than rounding."""
    still, known = (both[0] for both in given_flow.rigid(clip, np.array([t]), np.array([other])))
    known &= field.valid
    still = given_flow.bounded(still)
    if not known.any():
        return known
    off = np.linalg.norm(field.values - still, axis=-1)
    rounding = LEAST_PX + LEAST_OF_FLOW * np.linalg.norm(still, axis=-1)
    return known & (off > np.maximum(rounding, TIMES_USUAL * np.quantile(off[known], 0.25)))


def _closed(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """With gaps of a pixel or two filled."""
    import cv2

    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0


def _by_tracks(instances: Int32[np.ndarray, "T H W"], seen: Seen) -> dict[int, bool]:
    """Instance -> whether most of its tracks move, for instances with enough of them."""
    row, column = seen.pixels
    frame = np.broadcast_to(np.arange(len(row))[:, None], row.shape)
    on = np.where(seen.inside, instances[frame, row, column], 0)
    depth = np.where(seen.inside, seen.places[..., 2], 0).max(0)
    far = travelled(seen.tracks) > np.maximum(TRACK_M, TRACK_OF_Z * depth)
    told = {}
    for number in np.unique(on[on > 0]):
        mine = (on == number).any(0)
        if mine.sum() >= _FEWEST_TRACKS:
            told[int(number)] = bool(far[mine].mean() > 0.5)
    return told


def sparse(
    clip: AnnotatedClip, seen: Seen, instances: Int32[np.ndarray, "T H W"] | None, stride: int
) -> list[Field | None]:
    """Scene flow at pixels that visible tracks lie on, from frame 0, stride, ... to the next, where depth agrees with them.

    Not at silhouettes: the track that falls into a pixel there may be of the surface beside the one that its centre shows.
    """
    assert clip.depth is not None
    row, column = seen.pixels
    inner = None if instances is None else np.stack([_inner(ids) for ids in instances])
    fields: list[Field | None] = []
    for a in range(0, clip.shape[0] - stride, stride):
        z = clip.depth.z[a][row[a], column[a]]
        good = seen.inside[a] & seen.tracks.valid[a + stride] & (np.abs(z - seen.places[a, :, 2]) < AGREEMENT * z)
        good &= True if inner is None else inner[a][row[a], column[a]]
        values = np.zeros((*clip.shape[1:], 3), np.float32)
        valid = np.zeros(clip.shape[1:], bool)
        values[row[a][good], column[a][good]] = (seen.tracks.p_world[a + stride] - seen.tracks.p_world[a])[good]
        valid[row[a][good], column[a][good]] = True
        fields.append(Field(values=values, valid=valid))
    return fields


def _inner(ids: Int32[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """True where the eight pixels around show the same instance."""
    import cv2

    box, image = np.ones((3, 3), np.uint8), ids.astype(np.float32)
    return cv2.erode(image, box) == cv2.dilate(image, box)


def travelled(tracks: Tracks) -> Float64[np.ndarray, " N"]:
    """How far each track gets from where it is first known."""
    first = tracks.valid.argmax(0)
    start = tracks.p_world[first, np.arange(len(first))]
    way = np.linalg.norm(tracks.p_world - start, axis=-1)
    return np.where(tracks.valid, way, 0).max(0)


def see(tracks: Tracks, clip: AnnotatedClip, world_from_first: Float64[np.ndarray, "4 4"]) -> Seen:
    """The tracks as the clip's cameras see them; `world_from_first` leads from the clip's world to the scene's."""
    assert clip.cameras is not None
    world_from_cam = torch.from_numpy(world_from_first @ clip.cameras.world_from_cam)
    p_world = torch.from_numpy(np.where(tracks.valid[..., None], tracks.p_world, 0))
    p_cam = camera.transform(camera.invert(world_from_cam)[:, None], p_world)
    ahead = p_cam[..., 2] > 1e-6
    safe = torch.where(ahead[..., None], p_cam, torch.ones_like(p_cam))
    uv = camera.project(safe, torch.from_numpy(clip.cameras.intrinsics)[:, None])
    inside = ahead & warp.in_bounds(uv, *clip.shape[1:])
    places = torch.cat((uv, p_cam[..., 2:]), -1).numpy()
    return Seen(
        tracks=tracks,
        places=places,
        inside=tracks.visible & tracks.valid & inside.numpy(),
        height=clip.shape[1],
        width=clip.shape[2],
    )


def _left(clip: AnnotatedClip, where: Bool[np.ndarray, "T H W"]) -> bool:
    """Whether an instance leaves its place: held still, its points are not where it is seen in some other frame."""
    import cv2

    box = np.ones((3, 3), np.uint8)
    inner = np.stack([cv2.erode(frame.astype(np.uint8), box) > 0 for frame in where])
    seen = [t for t in range(len(where)) if inner[t].sum() >= _FEWEST]
    pairs = [(seen[0], t) for t in seen[1:]] + [(seen[-1], t) for t in seen[:-1]] if seen else []
    shares = filter(None, (_found_again(clip, where, inner, a, b) for a, b in pairs))
    return any(near < STILL_SHARE or sharp < STILL_SHARE_SHARP for near, sharp in shares)


def _found_again(
    clip: AnnotatedClip, where: Bool[np.ndarray, "T H W"], inner: Bool[np.ndarray, "T H W"], a: int, b: int
) -> tuple[float, float] | None:
    """Share of the instance's inner pixels of frame a that frame b shows on it, give or take a pixel, and exactly there.

    What something else hides is not asked for; None if too little is left.
    """
    assert clip.depth is not None
    assert clip.cameras is not None
    z, cameras = clip.depth.z, clip.cameras
    world_from_cam = torch.from_numpy(cameras.world_from_cam)
    intrinsics = torch.from_numpy(cameras.intrinsics)
    pick = torch.from_numpy(inner[a] & clip.depth.valid[a])
    uv = camera.pixel_centers(*clip.shape[1:])[pick]
    p_cam = camera.unproject(uv, torch.from_numpy(z[a]).double()[pick], intrinsics[a])
    p_there = camera.transform(camera.invert(world_from_cam[b]) @ world_from_cam[a], p_cam)
    ahead = p_there[:, 2] > 1e-6
    there = camera.project(torch.where(ahead[:, None], p_there, torch.ones_like(p_there)), intrinsics[b])
    shown = ahead & warp.in_bounds(there, *clip.shape[1:])
    at = torch.stack((*_around(z[b], where[b]), torch.from_numpy(where[b] * z[b]).double()), dim=-1)
    on, near, far, sharp = warp.sample(at, there, mode="nearest").unbind(-1)
    expected = p_there[:, 2]
    hidden = (near > 0) & (near < (1 - HIDES) * expected) & (on < 0.5)
    asked = shown & ~hidden
    if asked.sum() < _FEWEST:
        return None
    slack = torch.clamp(AGREEMENT * expected, min=TRACK_M * _unit(clip))
    found = (on > 0.5) & (near < expected + slack) & (far > expected - slack)
    exactly = (sharp - expected).abs() < slack
    return float(found[asked].double().mean()), float(exactly[asked].double().mean())


def _around(z: Float32[np.ndarray, "H W"], where: Bool[np.ndarray, "H W"]) -> list[torch.Tensor]:
    """Whether the instance is at most a pixel away, and the nearest and farthest depth so far around: rounding moves no edge."""
    import cv2

    box = np.ones((3, 3), np.uint8)
    images = cv2.dilate(where.astype(np.uint8), box), cv2.erode(z, box), cv2.dilate(z, box)
    return [torch.from_numpy(image.astype(np.float64)) for image in images]
