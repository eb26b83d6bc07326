"""From a scene to clips: spans of frames at the recipe's rate, and partly filled `AnnotatedClip`s with truth in their slots."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from annotate import cut as cutting
from annotate.cut import Cut, Span
from annotate.datasets import given_flow, movers, poses
from annotate.datasets.dataset import Facts, Field, Frame, Scene
from annotate.datasets.fitting import Fit
from annotate.datasets.movers import looked_up
from shared.clip import KEY_STRIDE, AnnotatedClip, Cameras, Depth, Motion, Tracks
from shared.video import Video

_TIME_BASE = Fraction(1, 1_000_000)


def spans(scene: Scene, cut: Cut, scores: Mapping[str, float]) -> list[Span]:
    """All clips of a scene in order, each with the scene's `scores`; one refused span for each shot that gives none."""
    facts, found = scene.facts, []
    video = as_video(facts, cut.fps)
    for numbers in facts.shots:
        seconds = numbers / (video.fps * facts.step)
        picked, reason = cutting.windows(seconds, 0, len(numbers), cut)
        if reason:
            found.append(cutting.span_of(video, numbers, cut, reason))
        found += [cutting.span_of(video, numbers[window], cut, "") for window in picked]
    return [replace(span, scores={**span.scores, **scores}, **_looks(scene, span)) for span in found]


def as_video(facts: Facts, wanted_fps: float) -> Video:
    """The scene as pipelines know sources; at the wanted rate if its own is not known."""
    numbers, fps = np.concatenate(facts.shots), facts.fps or wanted_fps
    seconds = numbers / (fps * facts.step)
    told = f"{facts.uri} {len(numbers)} {facts.height} {facts.width}"
    return Video(
        uri=facts.uri,
        fps=fps,
        height=facts.height,
        width=facts.width,
        num_frames=len(numbers),
        identity=hashlib.blake2b(told.encode(), digest_size=16).hexdigest(),
        licence=facts.licence,
        time_base=_TIME_BASE,
        pts=np.round(seconds / float(_TIME_BASE)).astype(np.int64),
    )


def _looks(scene: Scene, span: Span) -> dict[str, int]:
    """The perceptual hash of a clip's middle picture, by which look-alikes are found."""
    if span.reason:
        return {}
    import cv2

    from annotate.screen import phash

    rgb = scene.frame(int(span.frames[len(span.frames) // 2])).rgb
    return {"phash": phash(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))}


class Blocks:
    """What frames have, each kind in one array of all frames that is filled frame by frame: no clip lies in memory twice."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._blocks: dict[str, np.ndarray | None] = {}

    def put(self, t: int, frame: Frame) -> None:
        """Frame t; kinds that one frame lacks are given up."""
        for name, array in frame.__dict__.items():
            if array is None:
                self._blocks[name] = None
                continue
            if name not in self._blocks:
                self._blocks[name] = np.empty((self._count, *array.shape), array.dtype)
            if (block := self._blocks[name]) is not None:
                block[t] = array

    def get(self, name: str) -> np.ndarray | None:
        """T of them; None if a frame has none."""
        return self._blocks[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """The frames of a clip at its size, poses in the scene's world, and what leads from each on."""

    frames: Blocks
    scene_flow: list[Field | None]
    """To the next frame of the clip; of the last, back to the one before."""
    key_scene_flow: list[Field | None]


def load(scene: Scene, span: Span, cut: Cut, source: str) -> AnnotatedClip:
    """The clip with everything that its data set knows; `source` names the data set in every slot.

    Raises ValueError that names the file for whatever cannot be read or is not plausible.
    """
    facts = scene.facts
    taken, flows = _take(scene, span.frames, cut)
    rgb, z = taken.frames.get("rgb"), taken.frames.get("z")
    assert rgb is not None
    clip = AnnotatedClip(
        id=span.id,
        rgb=rgb,
        fps=span.fps,
        source=facts.uri,
        frames=span.frames,
        caption=scene.caption(span.frames),
        licence=facts.licence,
        scores=span.scores,
    )
    if z is not None:
        clip = clip.with_(depth=Depth(z=z, valid=z > 0, metric=facts.metric, source=source))
    world_from_cam, intrinsics = taken.frames.get("world_from_cam"), taken.frames.get("intrinsics")
    if world_from_cam is not None and intrinsics is not None:
        clip = clip.with_(cameras=_cameras(world_from_cam, intrinsics, facts.metric, source))
    flows = flows.completed(clip, static=facts.static)
    return _with_motion(flows.laid_into(clip, source), taken, flows, scene, source)


def _take(scene: Scene, numbers: Int64[np.ndarray, " T"], cut: Cut) -> tuple[Taken, given_flow.Given]:
    """One frame at a time at the data set's size: all of a clip there would not fit into a worker."""
    facts = scene.facts
    fit = Fit(height=facts.height, width=facts.width, to_height=cut.height, to_width=cut.width)
    taken, flows = (
        Taken(frames=Blocks(len(numbers)), scene_flow=[], key_scene_flow=[]),
        given_flow.Given([], [], [], []),
    )
    known = [int(number) for number in numbers]
    for t, number in enumerate(known):
        frame = scene.frame(number)
        if frame.rgb.shape[:2] != (facts.height, facts.width):
            found = f"{frame.rgb.shape[1]} x {frame.rgb.shape[0]}"
            raise ValueError(f"{facts.uri}: frame {number} is {found}, expected {facts.width} x {facts.height}")

        def fitted(field: Field | None, *, pixels: bool, z: np.ndarray | None = frame.z) -> Field | None:
            if field is None:
                return None
            if facts.static and not pixels:  # nothing moves: only where that is not known counts
                valid = fit.nearest(field.valid)
                return Field(values=np.broadcast_to(np.zeros(3, np.float32), (*valid.shape, 3)), valid=valid)
            return fit.field(field, z, pixels=pixels)

        if t + 1 < len(known):
            flows.forward.append(fitted(scene.flow(number, known[t + 1]), pixels=True))
        if t > 0:
            flows.backward.append(fitted(scene.flow(number, known[t - 1]), pixels=True))
        other = known[t + 1] if t + 1 < len(known) else known[t - 1] if t else number
        taken.scene_flow.append(fitted(scene.scene_flow(number, other, frame), pixels=False))
        if t % KEY_STRIDE == 0 and t + KEY_STRIDE < len(known):
            taken.key_scene_flow.append(fitted(scene.scene_flow(number, known[t + KEY_STRIDE], frame), pixels=False))
            flows.key_forward.append(fitted(scene.flow(number, known[t + KEY_STRIDE]), pixels=True))
        if t % KEY_STRIDE == 0 and t > 0:
            flows.key_backward.append(fitted(scene.flow(number, known[t - KEY_STRIDE]), pixels=True))
        taken.frames.put(t, _fitted(frame, fit))
    return taken, flows


def _fitted(frame: Frame, fit: Fit) -> Frame:
    return Frame(
        rgb=fit.rgb(frame.rgb),
        z=None if frame.z is None else fit.depth(frame.z),
        sky=None if frame.sky is None else fit.nearest(frame.sky),
        instances=None if frame.instances is None else fit.nearest(frame.instances),
        world_from_cam=frame.world_from_cam,
        intrinsics=None if frame.intrinsics is None else fit.intrinsics(frame.intrinsics),
    )


def _cameras(
    world_from_cam: Float64[np.ndarray, "T 4 4"], intrinsics: Float64[np.ndarray, "T 4"], metric: bool, source: str
) -> Cameras:
    """In the world of the clip's first camera."""
    canonical = poses.inverse(world_from_cam[0]) @ world_from_cam
    canonical[0], canonical[:, 3] = np.eye(4), (0, 0, 0, 1)
    return Cameras(world_from_cam=canonical, intrinsics=intrinsics, metric=metric, source=source)


def _with_motion(
    clip: AnnotatedClip, taken: Taken, flows: given_flow.Given, scene: Scene, source: str
) -> AnnotatedClip:
    """Dynamic pixels by motion, never by what something is; scene flow where it is exact. Annotators complete the rest."""
    ids, sky, world_from_cam = (taken.frames.get(name) for name in ("instances", "sky", "world_from_cam"))
    instances = None if ids is None else _ids(ids)
    first = None if world_from_cam is None else world_from_cam[0]
    tracks = scene.tracks(clip.frames) if first is not None and clip.cameras is not None else None
    seen = None if tracks is None or first is None else movers.see(tracks, clip, first)
    if seen is not None and first is not None:
        clip = clip.with_(tracks=_tracks(seen, first, scene.facts.max_tracks, source))
    dynamic = movers.moving(
        clip, taken.scene_flow, taken.key_scene_flow, instances, seen, flows, static=scene.facts.static
    )
    if dynamic is None or first is None:
        return clip
    steps, keys = clip.shape[0] - 1, (clip.shape[0] - 1) // KEY_STRIDE
    fields, key_fields = taken.scene_flow, taken.key_scene_flow
    if seen is not None and clip.depth is not None:
        fields, key_fields = (movers.sparse(clip, seen, instances, stride) for stride in (1, KEY_STRIDE))
    turn = first[:3, :3].T
    still = scene.facts.static
    scene_flow, valid = _canonical(fields, dynamic[:steps], turn, clip, 1, still=still)
    key_scene_flow = key_valid = None
    if still or (keys and all(field is not None and seen is None for field in key_fields)):
        starts = dynamic[0 : keys * KEY_STRIDE : KEY_STRIDE]
        key_scene_flow, key_valid = _canonical(key_fields, starts, turn, clip, KEY_STRIDE, still=still)
    motion = Motion(
        dynamic=dynamic,
        scene_flow=scene_flow,
        scene_flow_valid=valid,
        key_scene_flow=key_scene_flow,
        key_scene_flow_valid=key_valid,
        sky=sky,
        instances=instances,
        source=source,
    )
    return clip.with_(motion=motion)


def _tracks(seen: movers.Seen, world_from_first: Float64[np.ndarray, "4 4"], most: int, source: str) -> Tracks | None:
    """Those that the clip's own pictures show, at most so many, in the world of its first camera; None: none."""
    shown = np.flatnonzero(seen.inside.any(0))
    kept = shown[np.linspace(0, len(shown), min(most, len(shown)), endpoint=False).astype(int)]
    if not len(kept):
        return None
    valid = seen.tracks.valid[:, kept]
    first_from_world = poses.inverse(world_from_first)
    p_world = seen.tracks.p_world[:, kept] @ first_from_world[:3, :3].T + first_from_world[:3, 3]
    p_world = np.where(valid[..., None], p_world, 0).astype(np.float32)
    return Tracks(p_world=p_world, visible=seen.inside[:, kept], valid=valid, source=source)


def _canonical(
    fields: list[Field | None],
    dynamic: Bool[np.ndarray, "P H W"],
    turn: Float64[np.ndarray, "3 3"],
    clip: AnnotatedClip,
    stride: int,
    *,
    still: bool,
) -> tuple[Float32[np.ndarray, "P H W 3"], Bool[np.ndarray, "P H W"]]:
    """Along the axes of the clip's first camera; exactly 0, and known wherever depth is, on what stands still.

    In a `still` scene, a field only says of which pixels that is not known. Fields are let go as they are laid in.
    """
    vectors = np.zeros((*dynamic.shape, 3), np.float32)
    valid = ~dynamic
    if clip.depth is not None:
        valid &= clip.depth.valid[0 : len(dynamic) * stride : stride]
    for p in range(len(dynamic)):
        field, fields[p] = fields[p], None
        if field is not None and still:
            valid[p] &= field.valid
        elif field is not None:
            known = dynamic[p] & field.valid
            vectors[p][known] = field.values[known] @ turn.T
            valid[p] |= known
    return vectors, valid


def _ids(ids: Int32[np.ndarray, "T H W"]) -> Int32[np.ndarray, "T H W"]:
    """Numbered 1, 2, ... in the order of the data set's numbers; 0 stays 0."""
    assert ids.min(initial=0) == 0, "ids are not negative"
    if ids.max() >= 1 << 24:  # more than colors: no table
        _, places = np.unique(np.concatenate(([0], ids.ravel())), return_inverse=True)
        return places[1:].reshape(ids.shape).astype(np.int32)
    there = np.zeros(int(ids.max()) + 1, bool)
    for frame in ids:
        there[frame] = True
    there[0] = False
    return looked_up(np.cumsum(there, dtype=np.int32) * there, ids)
