"""Dynamic Replica as its documentation says it is laid out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from miniatures import drawing


def write(
    root: Path, *, format_: str = "ndc_isotropic", kind: str = "lateral", split: str = "train", **flags: bool
) -> Path:
    """One sequence, left camera with everything, right camera without tracks. Returns the split's folder."""
    true, folder = drawing.true(kind), root / split
    records: list[dict[str, Any]] = []
    for camera in ("left", "right"):
        for t in range(len(true.z)):
            records.append(_frame(folder, true, t, "000001-3_obj", camera, format_, **flags))
    records.sort(key=lambda record: record["frame_number"])
    drawing.jgz(folder / f"frame_annotations_{split}.jgz", records)
    return folder


def _frame(
    folder: Path, true: drawing.Truth, t: int, sequence: str, camera: str, format_: str, *, tracks: bool = True
) -> dict[str, Any]:
    stem, where = f"{sequence}_{camera}-{t:04d}", f"{sequence}_{camera}"
    paths = {kind: f"{where}/{kind}/{stem}.{'jpg' if kind == 'images' else 'png'}" for kind in KINDS}
    z = true.z[t].copy()
    z[0, :4] = 0
    drawing.image(folder / f"{where}/images/{stem}.png", true.clip.rgb[t])
    drawing.image(folder / paths["depths"], drawing.half_bits(z))
    drawing.image(folder / paths["masks"], np.where(true.instances[t] > 0, 255, 0).astype(np.uint8))
    drawing.image(folder / paths["instance_id_maps"], _ids(true, t))
    record = {
        "sequence_name": sequence,
        "frame_number": t,
        "frame_timestamp": t / 30,
        "camera_name": camera,
        "image": {"path": f"{where}/images/{stem}.png", "size": [drawing.HEIGHT, drawing.WIDTH]},
        "depth": {"path": paths["depths"], "scale_adjustment": 1.0},
        "mask": {"path": paths["masks"]},
        "instance_id_map_path": {"path": paths["instance_id_maps"]},
        "viewpoint": viewpoint(true, t, format_),
        "trajectories": {"path": None},
    }
    for direction, other, flows in (
        ("forward", t + 1, true.clip.flow.forward),
        ("backward", t - 1, true.clip.flow.backward),
    ):
        name, there = f"flow_{direction}", 0 <= other < len(true.z)
        record[name] = {"path": paths[name] if there else None}
        record[f"{name}_mask"] = {"path": paths[f"{name}_mask"] if there else None}
        if there:
            flow = flows[min(t, other)]
            drawing.image(folder / paths[name], drawing.half_bits(np.concatenate((flow[..., 0], flow[..., 1]), axis=1)))
            known = np.full(flow.shape[:2], 255, np.uint8)
            known[5:8, 5:8] = 0
            drawing.image(folder / paths[f"{name}_mask"], known)
    if tracks and camera == "left":
        record["trajectories"] = {"path": _tracks(folder, where, stem, true, t)}
    return record


KINDS = (
    "images",
    "depths",
    "masks",
    "instance_id_maps",
    *(f"flow_{d}{m}" for d in ("forward", "backward") for m in ("", "_mask")),
)


def _ids(true: drawing.Truth, t: int) -> np.ndarray:
    """Furniture has a number too: 9 for the left third of the room. It is not in the mask."""
    ids = true.instances[t].astype(np.uint8)
    ids[:, : drawing.WIDTH // 3][ids[:, : drawing.WIDTH // 3] == 0] = 9
    return ids


def viewpoint(true: drawing.Truth, t: int, format_: str) -> dict[str, Any]:
    """PyTorch3D: p_cam = p_world R + T, x to the left and y up; focal and center in halves of the picture."""
    flip = np.diag([-1.0, -1.0, 1.0])
    cam = flip @ true.cam_from_world[t, :3]
    half = np.array([drawing.WIDTH, drawing.HEIGHT]) / 2
    scale = np.full(2, half.min()) if format_ == "ndc_isotropic" else half
    focal = np.array([true.k[0, 0], true.k[1, 1]]) / scale
    point = -(np.array([true.k[0, 2], true.k[1, 2]]) - half) / scale
    return {
        "R": cam[:, :3].T.tolist(),
        "T": cam[:, 3].tolist(),
        "focal_length": focal.tolist(),
        "principal_point": point.tolist(),
        "intrinsics_format": format_,
    }


def _tracks(folder: Path, where: str, stem: str, true: drawing.Truth, t: int) -> str:
    p_world, visible, instance = drawing.tracks(true)
    path = f"{where}/trajectories/{stem}.pth"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    found = {
        "traj_2d": torch.zeros(p_world.shape[1], 3),
        "traj_3d_world": torch.from_numpy(p_world[t]).float(),
        "verts_inds_vis": torch.from_numpy(visible[t]),
        "instances": torch.from_numpy(instance),
        "img": torch.from_numpy(true.clip.rgb[t]),
    }
    torch.save(found, folder / path)
    return path
