"""PointOdyssey v1.2 as its documentation says it is laid out."""

from pathlib import Path

import numpy as np
from miniatures import drawing

PALETTE = np.array([(0, 0, 0), (200, 30, 60), (20, 180, 40), (90, 10, 220), (240, 220, 0)], np.uint8)


def write(root: Path, name: str = "kitchen", kind: str = "lateral", split: str = "train", **changes: object) -> Path:
    """One scene; `changes` replace arrays of anno.npz, or leave them out (None). Returns its folder."""
    true = drawing.true(kind)
    folder = root / split / name
    p_world, visible, _ = drawing.tracks(true)
    for t in range(len(true.z)):
        drawing.image(folder / f"rgbs/rgb_{t:05d}.jpg", true.clip.rgb[t])
        raw = np.floor(true.z[t] / 1000 * 65535).astype(np.uint16)
        raw[0, :4] = 65535  # sky
        raw[1, :4] = 0
        drawing.image(folder / f"depths/depth_{t:05d}.png", raw)
        drawing.image(folder / f"masks/mask_{t:05d}.png", PALETTE[true.instances[t]])
        drawing.image(folder / f"normals/normal_{t:05d}.jpg", true.clip.rgb[t])
    arrays = {
        "intrinsics": np.tile(true.k, (len(true.z), 1, 1)).astype(np.float32),
        "extrinsics": true.cam_from_world.astype(np.float32),
        "trajs_3d": p_world.astype(np.float32),
        "trajs_2d": np.zeros((*p_world.shape[:2], 2), np.float16),
        "visibs": visible,
        "valids": np.ones(visible.shape, bool),
    } | changes
    kept = {key: value for key, value in arrays.items() if value is not None}
    np.savez_compressed(folder / "anno.npz", **kept)
    np.savez(folder / "info.npz", trajs_3d=np.array(p_world.shape))
    return folder
