"""`worldreel evaluate labels`: how far a run's labels are from the truth, clip by clip and in total."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import truth as truths
from pipelines.truth import Truth
from shared import align, camera, files, metrics, shards
from shared.clip import AnnotatedClip

COLUMNS = {
    "ATE %": "cameras.ate_percent",
    "RRE °": "cameras.rpe_rotation_deg",
    "focal %": "cameras.focal_error_percent",
    "AbsRel": "static_depth.abs_rel",
    "cover": "static_depth.coverage",
    "AbsRel all": "depth.median.abs_rel",
    "δ1": "depth.median.delta_1",
    "points": "points.rel",
    "EPE": "flow.epe",
    "1px": "flow.px1",
    "Fl": "flow.fl",
    "EPE3D": "scene_flow.epe3d",
    "kept": "scene_flow.kept",
    "IoU": "dynamic.iou",
}
"""What the table shows; the JSON holds all."""

AFFINE_PIXELS = 1 << 18
"""Scale and shift are solved on at most so many evenly drawn pixels."""


def print_labels(pred: str, truth: str, json_: str | None = None) -> None:
    """Print the table of `evaluate_labels`; with `json_`, also write every number there."""
    table, found = evaluate_labels(pred, truth)
    print(table)
    if json_ is not None:
        files.write_whole(json_, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())


def evaluate_labels(pred_uri: str, truth_uri: str) -> tuple[str, dict[str, Any]]:
    """(A table, {clips: {clip id: numbers}, total, unmatched, matched_by}) of annotated shards against shards or .npz truth files.

    A clip's truth is that of a source of the same file name which holds all its frames (`matched_by` name). Only if no clip's name
    is among the truth's, and there are as many of one as of the other, they are taken in order. Raises ValueError if nothing can
    be compared.
    """
    clips: dict[str, dict[str, Any]] = {}
    unmatched: list[str] = []
    shelf = truths.Shelf(truth_uri)
    by_name = _shares_names(pred_uri, shelf)
    for clip, truth in _by_name(pred_uri, shelf) if by_name else _in_order(pred_uri, shelf):
        if truth is None:
            unmatched.append(clip.id)
        else:
            clips[clip.id] = {"source": clip.source, **_flags(clip), **evaluate_clip(clip, truth)}
    if not clips:
        raise ValueError(f"{pred_uri}: none of {len(unmatched)} clips has its source and frames in {truth_uri}")
    found = {
        "clips": clips,
        "total": total(list(clips.values())),
        "unmatched": unmatched,
        "matched_by": "name" if by_name else "order",
    }
    return _table(found), found


def evaluate_clip(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    """Every metric that labels and truth allow, under dotted names."""
    truth = truth.of(clip)
    return {
        **_depth(clip, truth),
        **_cameras(clip, truth),
        **_points(clip, truth),
        **_flow(clip, truth),
        **_dynamic(clip, truth),
        **_scene_flow(clip, truth),
    }


def total(clips: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the clips that have a number; those of depth weighted by its pixels."""
    names = dict.fromkeys(name for clip in clips for name, value in clip.items() if isinstance(value, float))
    means = {"clips": float(len(clips))}
    for name in names:
        having = [clip for clip in clips if name in clip]
        by_pixels = "depth" in name.split(".")[0] and not name.endswith(("coverage", "pixels"))
        weights = [clip["depth.pixels"] if by_pixels else 1.0 for clip in having]
        means[name] = float(np.average([clip[name] for clip in having], weights=weights))
    return means


def _shares_names(pred_uri: str, shelf: truths.Shelf) -> bool:
    tables = shards.iter_index(pred_uri)
    return any(truths.stem(source) in shelf for table in tables for source in table["source"].to_pylist())


def _by_name(pred_uri: str, shelf: truths.Shelf) -> Iterator[tuple[AnnotatedClip, Truth | None]]:
    for clip in shards.read_clips(pred_uri):
        yield clip, next((t for t in shelf.named(truths.stem(clip.source)) if t.covers(clip)), None)


def _in_order(pred_uri: str, shelf: truths.Shelf) -> Iterator[tuple[AnnotatedClip, Truth | None]]:
    statuses = (status for table in shards.iter_index(pred_uri) for status in table["status"].to_pylist())
    if sum(status == "annotated" for status in statuses) != len(shelf):
        yield from ((clip, None) for clip in shards.read_clips(pred_uri, ()))
        return
    for clip, truth in zip(shards.read_clips(pred_uri), shelf.in_order()):
        yield clip, truth if len(truth.frames) == len(clip.frames) and truth.covers(clip) else None


def _flags(clip: AnnotatedClip) -> dict[str, Any]:
    return {"degenerate": clip.cameras.degenerate if clip.cameras else None}


def _depth(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    z, valid = _predicted_depth(clip)
    if z is None or valid is None or truth.z is None or truth.valid is None:
        return {}
    both = valid & truth.valid
    found = {"depth.coverage": _part(both, truth.valid), "depth.pixels": float(both.sum())}
    found |= _aligned_depth(z[both], truth.z[both])
    if truth.dynamic is not None:
        still = truth.valid & ~truth.dynamic
        found["static_depth.coverage"] = _part(valid & still, still)
        p, g = _tensor(z[valid & still]), _tensor(truth.z[valid & still])
        if len(p):
            found |= _named("static_depth", metrics.depth(align.median_scale(p, g) * p, g))
    return found


def _aligned_depth(z: np.ndarray, truth_z: np.ndarray) -> dict[str, float]:
    """After the three alignments that tables in the field use."""
    p, g = _tensor(z), _tensor(truth_z)
    if not len(p):
        return {}
    every = max(1, len(p) // AFFINE_PIXELS)
    s, t = align.lad_scale_shift(p[::every], g[::every])
    return {
        **_named("depth.median", metrics.depth(align.median_scale(p, g) * p, g)),
        **_named("depth.lad", metrics.depth(align.lad_scale(p, g) * p, g)),
        **_named("depth.affine", metrics.depth(s * p + t, g)),
    }


def _cameras(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    if clip.cameras is None or truth.world_from_cam is None or len(truth.frames) < 2:
        return {}
    ours, theirs = _tensor(clip.cameras.world_from_cam), _tensor(truth.world_from_cam)
    ours[:, :3, 3] *= _depth_scale(clip, truth)  # a similarity would find it; a still camera has none
    scene_depth = metrics.path_length(theirs)
    if truth.z is not None and truth.valid is not None and truth.valid.any():
        scene_depth = float(np.median(truth.z[truth.valid]))
    found = metrics.cameras(ours, theirs, scene_depth=scene_depth)
    if not found["near_still"]:  # a camera that stands still has no direction of travel
        found["auc30"] = metrics.pairwise_auc(ours, theirs)
    if truth.intrinsics is not None:
        ratio = clip.cameras.intrinsics[:, :2].mean(1) / truth.intrinsics[:, :2].mean(1)
        found["focal_error_percent"] = 100 * float(np.abs(ratio - 1).mean())
    return _named("cameras", found)


def _points(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    pair = _point_pair(clip, truth)
    if pair is None:
        return {}
    p, g = pair
    return _named("points", {**metrics.points(p * align.least_squares_scale(p, g), g)})


def _flow(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    if clip.flow is None or truth.flow is None or not len(truth.pairs):
        return {}
    ours, theirs = _tensor(clip.flow.forward[_at(clip, truth)]), _tensor(truth.flow)
    found = _named("flow", metrics.flow(ours.reshape(-1, 2), theirs.reshape(-1, 2)))
    if truth.visible is not None:
        seen = _tensor(truth.visible)
        found |= _named("flow.visible", metrics.flow(ours[seen], theirs[seen]))
    return found


def _dynamic(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    if clip.motion is None or truth.dynamic is None:
        return {}
    return _named("dynamic", metrics.mask(_tensor(clip.motion.dynamic), _tensor(truth.dynamic)))


def _scene_flow(clip: AnnotatedClip, truth: Truth) -> dict[str, float]:
    if clip.motion is None or truth.scene_flow is None or truth.dynamic is None or not len(truth.pairs):
        return {}
    at = _at(clip, truth)
    points = _point_pair(clip, truth)
    scale = align.least_squares_scale(*points) if points is not None else 1.0
    ours, theirs = scale * _tensor(clip.motion.scene_flow[at]), _tensor(truth.scene_flow)
    known = np.ones(theirs.shape[:3], bool) if truth.scene_flow_valid is None else truth.scene_flow_valid
    moving = truth.dynamic[np.searchsorted(truth.frames, truth.pairs[:, 0])]
    valid = clip.motion.scene_flow_valid[at] & known
    found = {"kept": _part(valid & moving, known & moving)}
    if (valid & moving).any():
        found |= metrics.scene_flow(ours[_tensor(valid & moving)], theirs[_tensor(valid & moving)])
    still = _tensor(valid & ~moving)
    if still.any():
        length = ours[still].norm(dim=-1)
        found |= {"static_epe3d": float(length.mean()), "static_zero": float((length == 0).double().mean())}
    return _named("scene_flow", found)


def _predicted_depth(clip: AnnotatedClip) -> tuple[np.ndarray | None, np.ndarray | None]:
    if clip.depth is not None:
        return clip.depth.z, clip.depth.valid
    if clip.points is not None:
        return clip.points.p_cam[..., 2], clip.points.valid & (clip.points.p_cam[..., 2] > 0)
    return None, None


def _depth_scale(clip: AnnotatedClip, truth: Truth) -> float:
    z, valid = _predicted_depth(clip)
    if z is None or valid is None or truth.z is None or truth.valid is None or not (both := valid & truth.valid).any():
        return 1.0
    return align.median_scale(_tensor(z[both]), _tensor(truth.z[both]))


def _point_pair(clip: AnnotatedClip, truth: Truth) -> tuple[Tensor, Tensor] | None:
    """Ours and the true points of the pixels that are valid in both, each in the world of its first camera."""
    _, valid = _predicted_depth(clip)
    if clip.cameras is None or valid is None or truth.z is None or truth.valid is None:
        return None
    if truth.world_from_cam is None or truth.intrinsics is None or not (both := valid & truth.valid).any():
        return None
    z, poses, intrinsics = (_tensor(x).double() for x in (truth.z, truth.world_from_cam, truth.intrinsics))
    return _tensor(clip.pointmap()[both]), camera.pointmap(z, poses, intrinsics).float()[_tensor(both)]


def _at(clip: AnnotatedClip, truth: Truth) -> np.ndarray:
    """Which of the clip's pairs the truth's pairs are."""
    return np.searchsorted(clip.frames[:-1], truth.pairs[:, 0])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)  # a copy: arrays of clips may be read-only


def _part(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum() / max(whole.sum(), 1))


def _named(name: str, found: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}.{key}": value for key, value in found.items() if math.isfinite(value)}


def _table(found: dict[str, Any]) -> str:
    rows = [["clip", *COLUMNS, "flags"]]
    for clip in found["clips"].values():
        flags = [flag for flag in (clip["degenerate"], "near_still" * int(clip.get("cameras.near_still", 0))) if flag]
        rows.append([truths.stem(clip["source"]), *_cells(clip), ",".join(flags)])
    rows.append([f"total of {len(found['clips'])}", *_cells(found["total"]), ""])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if found["matched_by"] == "order":
        lines.append("no file name agrees: taken in order")
    if found["unmatched"]:
        lines.append(f"without truth: {', '.join(found['unmatched'])}")
    return "\n".join(lines)


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [_cell(values[name]) if name in values else "-" for name in COLUMNS.values()]


def _cell(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1e-6 else "0"
