"""OmniWorld-Game as its documentation says it is laid out, unpacked one folder deeper than its archives' names suggest."""

from pathlib import Path
from typing import Any

import numpy as np
from miniatures import drawing

UID = "0a1b2c3d4e5f"
METERS_A_UNIT = 40.0


def write(
    root: Path, *, together: bool = False, metric: bool = True, splits: list[list[int]] | None = None, **changes: Any
) -> Path:
    """One recording; `together`: everything below one UID folder. `changes` replace entries of split_0.json."""
    true = drawing.true()
    notes = root / (UID if together else f"annotations/OmniWorld-Game/{UID}/{UID}_others")
    depths = root / (UID if together else f"annotations/OmniWorld-Game/{UID}/{UID}_depth_0000")
    videos = root / (UID if together else f"videos/OmniWorld-Game/{UID}")
    for t in range(len(true.z)):
        drawing.image(videos / f"color/{t:06d}.png", true.clip.rgb[t])
        drawing.image(depths / f"depth/{t:06d}.png", _raw_depth(true, t))
        drawing.image(notes / f"gdino_mask/{t:06d}.png", np.zeros(true.z[t].shape, np.uint8))
    splits = splits or [list(range(len(true.z)))]
    for k, numbers in enumerate(splits):
        drawing.document(notes / f"camera/split_{k}.json", _cameras(true, numbers) | changes)
        masks = {f"{t:06d}.png": {"mask_rle": coco(true.instances[t] > 0)} for t in numbers}
        drawing.document(notes / f"subject_masks/split_{k}.json", masks)
    drawing.document(notes / "split_info.json", {"split": splits, "num_splits": len(splits)})
    drawing.document(
        notes / "text/000000_000080.json", {"captions": {"Video_Caption": "a box sways", "Short_Caption": "box"}}
    )
    drawing.text(notes / "fps.txt", "FPS: 24.0\n")
    if metric:
        drawing.text(
            root / "metadata/OmniWorld-Game_metadata.csv",
            f"UID,Game,Metric Scale\nffffffffffff,x,1.0\n{UID},x,{METERS_A_UNIT}\n",
        )
    return root


def _raw_depth(true: drawing.Truth, t: int) -> np.ndarray:
    """d = raw / 65535 and z = d / (1000 - 999 d) / 0.004, solved for d."""
    units = true.z[t].astype(np.float64) / METERS_A_UNIT * 0.004
    raw = np.rint(1000 * units / (1 + 999 * units) * 65535).astype(np.uint16)
    raw[0, :4] = 65535  # sky
    raw[1, :4] = 50  # nearer than the near plane
    return raw


def _cameras(true: drawing.Truth, numbers: list[int]) -> dict[str, Any]:
    cam = true.cam_from_world[numbers]
    return {
        "focals": [float(true.k[0, 0])] * len(numbers),
        "cx": float(true.k[0, 2]),
        "cy": float(true.k[1, 2]),
        "quats": [drawing.quaternion_wxyz(pose[:3, :3]).tolist() for pose in cam],
        "trans": (cam[:, :3, 3] / METERS_A_UNIT).tolist(),
        "input_size": 0.5,
        "invalid_frame": [],
        "reproj_error_after_refine": 0.4,
    }


def coco(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed runs: down the columns, zeros first; from the fourth on differences to the one two before."""
    flat = mask.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    if flat[0]:
        runs.insert(0, 0)
    letters = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            bits, value = value & 0x1F, value >> 5
            done = (value == -1 and bits & 0x10) or (value == 0 and not bits & 0x10)
            letters += chr(48 + (bits if done else bits | 0x20))
            if done:
                break
    return {"size": list(mask.shape), "counts": letters}
