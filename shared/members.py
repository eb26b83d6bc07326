"""AnnotatedClip <-> the named pieces of bytes that are its members in a shard.

One array, one member: `rgb.mp4`, `cameras.npz`, `depth.wrz`, `flow.forward.wrz`, `motion.dynamic.wrz`, ... Whatever is no array
(sources, units, scores) is in `json`, with the checksum of every member, so that any subset that has `json` can be verified.
"""

import json
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
from jaxtyping import Float32

from shared import codecs
from shared.clip import AnnotatedClip, Cameras, Depth, Flow, Motion, Points, Tracks
from shared.index import FORMAT
from shared.store import Store

_SLOTS = {
    "cameras": Cameras,
    "flow": Flow,
    "depth": Depth,
    "motion": Motion,
    "key_flow": Flow,
    "points": Points,
    "tracks": Tracks,
}

_FLOW = (codecs.encode_flow, codecs.decode_flow)
_SCENE_FLOW = (codecs.encode_scene_flow, codecs.decode_scene_flow)
_UNCERTAINTY = (codecs.encode_uncertainty, codecs.decode_uncertainty)
_MASK = (codecs.encode_mask, codecs.decode_mask)

_COMPACT: dict[str, tuple[Callable[..., bytes], Callable[[bytes], np.ndarray]]] = {
    "flow.forward": _FLOW,
    "depth.z": (codecs.encode_depth, codecs.decode_depth),
    "motion.dynamic": _MASK,
    "motion.key_scene_flow": _SCENE_FLOW,
    "motion.key_scene_flow_valid": _MASK,
    "flow.backward": _FLOW,
    "motion.scene_flow": _SCENE_FLOW,
    "motion.scene_flow_valid": _MASK,
    "motion.sky": _MASK,
    "motion.instances": (codecs.encode_instances, codecs.decode_instances),
    "key_flow.forward": _FLOW,
    "key_flow.backward": _FLOW,
    "flow.uncertainty": _UNCERTAINTY,
    "key_flow.uncertainty": _UNCERTAINTY,
    "points.p_cam": (codecs.encode_points, codecs.decode_points),
    "points.valid": _MASK,
    "tracks.p_world": (codecs.encode_tracks, codecs.decode_tracks),
    "tracks.visible": _MASK,
    "tracks.valid": _MASK,
}
"""slot.field -> encoder, decoder."""

_ORDER = ("json", "cameras", "rgb", *_COMPACT)
"""In the tar. What training reads (frames, forward flow, depth, dynamic pixels, key scene flow) lies together, first."""


_FINE = {"flow.forward", "flow.backward", "depth.z"}
"""Members whose encoder can be told that they are truth."""


def encode(clip: AnnotatedClip, store: Store, truth: str = "") -> dict[str, bytes]:
    """The clip's members by suffix, in the order of the tar. Raises ValueError for what does not fit the codecs.

    `truth` names the source whose depth and flow are exact, and are stored with finer steps than estimates.
    """
    exact = store.codec == "plain"
    slots = {slot: part for slot in _SLOTS if (part := getattr(clip, slot)) is not None}
    if store.pointmaps == "dense" and "points" not in slots and "cameras" in slots and "depth" in slots:
        slots["points"] = _dense_points(slots["depth"], slots["cameras"])
    arrays = {name: array for slot, part in slots.items() for name, array in _arrays(slot, part).items()}
    members = {"rgb.mp4": codecs.encode_rgb(clip.rgb, clip.fps, 0 if exact else store.rgb_crf)}
    if clip.cameras is not None:
        members["cameras.npz"] = codecs.encode_cameras(clip.cameras.world_from_cam, clip.cameras.intrinsics)
    for name, array in arrays.items():
        fine = bool(truth) and slots[name.partition(".")[0]].source == truth
        members[f"{name}.{'npy' if exact else 'wrz'}"] = _encode_array(clip.id, name, array, exact, fine)
    facts = {
        "format": FORMAT,
        "id": clip.id,
        "source": clip.source,
        "fps": float(clip.fps),
        "frames": [int(frame) for frame in clip.frames],
        "caption": clip.caption,
        "licence": clip.licence,
        "scores": {name: float(score) for name, score in clip.scores.items()},
        "slots": {slot: _facts(part) for slot, part in slots.items()},
        "shapes": {name: list(array.shape) for name, array in {"rgb": clip.rgb, **arrays}.items()},
        "crc32": checksums(members),
    }
    members["json"] = seal(facts)
    return {suffix: members[suffix] for suffix in ordered(members)}


def decode(clip_id: str, members: Mapping[str, bytes]) -> AnnotatedClip:
    """The clip of any members, as long as `json` is one of them; members of others are passed over.

    A slot none of whose members are given stays empty. What a slot must have but is not given is 0 and takes no memory (frames:
    black), so that `flow.forward` can be had without `flow.backward`. Raises ValueError that names clip and member.
    """
    about = _about(clip_id, members)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for suffix, data in members.items():
        if suffix in about["crc32"]:
            if checksum(data) != about["crc32"][suffix]:
                raise ValueError(f"clip {clip_id}: {suffix} is corrupt: its checksum differs")
            slot, found = _decode_member(clip_id, suffix, data)
            arrays.setdefault(slot, {}).update(found)
    try:
        rgb = arrays.pop("rgb", {}).get("rgb", _zeros(about["shapes"]["rgb"], np.uint8))
        slots = {slot: _slot(slot, found, about) for slot, found in arrays.items()}
        return AnnotatedClip(
            id=about["id"],
            rgb=rgb,
            fps=about["fps"],
            source=about["source"],
            frames=np.array(about["frames"], np.int64),
            caption=about["caption"],
            licence=about["licence"],
            scores=about["scores"],
            **slots,
        )
    except KeyError as error:
        raise ValueError(f"clip {clip_id}: json lacks {error}, expected what worldreel writes") from None


def ordered(suffixes: Iterable[str]) -> list[str]:
    """Members in the order of the tar; strange ones last, by name."""
    rank = {stem: place for place, stem in enumerate(_ORDER)}
    return sorted(suffixes, key=lambda suffix: (rank.get(_stem(suffix), len(rank)), suffix))


def is_part(suffix: str, parts: Collection[str] | None) -> bool:
    """Whether a member is asked for: `motion` asks for all of its members, `motion.dynamic` for one; `json` always is."""
    stem = _stem(suffix)
    return parts is None or suffix == "json" or any(p == suffix or f"{stem}.".startswith(f"{p}.") for p in parts)


def checksum(data: bytes) -> str:
    """CRC-32, eight hex digits."""
    return f"{zlib.crc32(data):08x}"


def checksums(members: Mapping[str, bytes]) -> dict[str, str]:
    return {suffix: checksum(data) for suffix, data in members.items()}


def seal(facts: dict[str, Any]) -> bytes:
    """JSON, the same bytes for the same facts, with a checksum of itself."""
    try:
        return _canonical(facts | {"seal": checksum(_canonical(facts))}) + b"\n"
    except ValueError:
        bad = {name: score for name, score in facts.get("scores", facts.get("row", {})).items() if score != score}
        raise ValueError(f"{facts.get('id', facts.get('clip_id'))}: {bad or 'a score'} is not finite") from None


def unseal(data: bytes) -> dict[str, Any]:
    """What `seal` was given. Raises ValueError if a byte was changed."""
    try:
        facts = json.loads(data)
        seal = facts.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError("json is torn, corrupt or not of worldreel") from None
    if checksum(_canonical(facts)) != seal:
        raise ValueError("json is corrupt: its checksum differs")
    return facts


def _canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def _about(clip_id: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        about = unseal(members["json"])
    except KeyError:
        raise ValueError(f"clip {clip_id}: has no json among its members") from None
    except ValueError as error:
        raise ValueError(f"clip {clip_id}: {error}") from None
    if about.get("format", 0) > FORMAT:
        raise ValueError(
            f"clip {clip_id}: written in format {about['format']}, this worldreel reads up to {FORMAT}: update it"
        )
    if about.get("id") != clip_id:
        raise ValueError(f"clip {clip_id}: its json is of clip {about.get('id')}")
    return about


def _stem(suffix: str) -> str:
    """slot.field: the file kind stripped, and the field where a suffix leaves it out."""
    stem = suffix.rpartition(".")[0] or suffix
    return "depth.z" if stem == "depth" else stem


def _arrays(slot: str, part: Any) -> dict[str, np.ndarray]:
    """slot.field -> array, of those that become members of their own."""
    if slot == "cameras":
        return {}
    if slot == "depth":  # valid is where z is above 0
        return {"depth": np.where(part.valid, part.z, np.float32(0))}
    names = [f.name for f in fields(part) if isinstance(getattr(part, f.name), np.ndarray)]
    return {f"{slot}.{name}": getattr(part, name) for name in names}


def _encode_array(clip_id: str, name: str, array: np.ndarray, exact: bool, fine: bool) -> bytes:
    stem = _stem(f"{name}.wrz")
    encode, knobs = _COMPACT[stem][0], {"fine": True} if fine and stem in _FINE else {}
    try:
        return codecs.encode_plain(array) if exact else encode(array, **knobs)
    except ValueError as error:
        raise ValueError(f"{clip_id}: {name}: {error}") from None


def _decode_member(clip_id: str, suffix: str, data: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """The slot, and its arrays by field."""
    stem = _stem(suffix)
    slot, _, field = stem.partition(".")
    try:
        if slot == "rgb":
            return slot, {"rgb": codecs.decode_rgb(data)}
        if slot == "cameras":
            world_from_cam, intrinsics = codecs.decode_cameras(data)
            return slot, {"world_from_cam": world_from_cam, "intrinsics": intrinsics}
        array = codecs.decode_plain(data) if suffix.endswith(".npy") else _COMPACT[stem][1](data)
    except ValueError as error:
        raise ValueError(f"clip {clip_id}: {suffix}: {error}") from None
    if slot == "depth":
        return slot, {"z": array, "valid": array > 0}
    return slot, {field: array}


def _facts(part: Any) -> dict[str, Any]:
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}


def _slot(slot: str, found: dict[str, np.ndarray], about: dict[str, Any]) -> Any:
    kind, facts = _SLOTS[slot], about["slots"][slot]
    for field in fields(kind):
        required = field.default is MISSING and field.name not in facts
        if required and field.name not in found:
            dtype = bool if field.name in ("dynamic", "valid", "visible", "scene_flow_valid") else np.float32
            found[field.name] = _zeros(about["shapes"][f"{slot}.{field.name}"], dtype)
    return kind(**facts | found)


def _zeros(shape: list[int], dtype: Any) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _dense_points(depth: Depth, cameras: Cameras) -> Points:
    import torch  # not at the top: only this option needs it

    from shared import camera

    z = torch.from_numpy(depth.z).double()
    uv = camera.pixel_centers(z.shape[1], z.shape[2])
    p_cam: Float32[np.ndarray, "T H W 3"] = (
        camera.unproject(uv, z, torch.from_numpy(cameras.intrinsics)[:, None, None]).float().numpy()
    )
    p_cam = np.where(depth.valid[..., None], p_cam, np.float32(0))
    return Points(p_cam=p_cam, valid=depth.valid, metric=depth.metric, source=f"{depth.source}, unprojected")
