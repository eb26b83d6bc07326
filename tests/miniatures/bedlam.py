"""BEDLAM and BEDLAM2 as their documentation says they are laid out."""

from pathlib import Path

import numpy as np
from miniatures import drawing

COLUMNS = "name,x,y,z,yaw,pitch,roll,focal_length,sensor_width,sensor_height,hfov"


def write(root: Path, scene: str = "20221011_1_250_batch01hand", name: str = "seq_000001", **choices: object) -> Path:
    """One sequence of BEDLAM; `kind`: which world, `compression` of depth, `depth_every`: at 6 frames/s every fifth has depth."""
    true = drawing.true(str(choices.get("kind", "lateral")))
    folder = root / scene
    for t in range(len(true.z)):
        drawing.image(folder / f"png/{name}/{name}_{t:04d}.png", true.clip.rgb[t])
        if t % int(choices.get("depth_every", 1)) == 0:  # type: ignore[call-overload]
            z_cm = 100 * true.z[t].astype(np.float32)
            z_cm[0, :4], z_cm[1, :4] = np.inf, 1e10
            path = folder / f"depth/{name}/{name}_{t:04d}_depth.exr"
            drawing.exr(path, {"Depth": z_cm}, str(choices.get("compression", "zip")))
        _masks(folder / f"masks/{name}", name, t, true.instances[t])
    drawing.text(folder / f"ground_truth/camera/{name}_camera.csv", table(true))
    drawing.text(folder / "be_seq.csv", f"Index,Type,Comment\n0,Comment,sequence_name={name};frames={len(true.z)}\n")
    return folder


def write2(root: Path, scene: str = "20240416_1_250_room", name: str = "seq_000000", *, sharp: bool = True) -> Path:
    """One sequence of BEDLAM2; the camera table of the blurred rendering is another one's."""
    true = drawing.true()
    folder = root / scene
    for t in range(len(true.z)):
        z_cm = (100 * true.z[t]).astype(np.float16)
        z_cm[0, :4] = np.inf
        drawing.exr(folder / f"exr_layers/depth/{name}/{name}_{t:04d}_depth.exr", {"Depth": z_cm})
        _masks(folder / f"exr_layers/masks/{name}", name, t, true.instances[t])
        drawing.image(folder / f"png/{name}/{name}_{t:04d}.png", 255 - true.clip.rgb[t])
        if sharp:
            drawing.image(folder / f"exr_layers/image/{name}/{name}_{t:04d}_image.png", true.clip.rgb[t])
    drawing.text(folder / f"ground_truth/meta_exr_depth_csv/{name}_camera.csv", table(true))
    drawing.text(folder / f"ground_truth/meta_exr_csv/{name}_camera.csv", table(drawing.true("orbit")))
    return folder


def _masks(folder: Path, name: str, t: int, instances: np.ndarray) -> None:
    """The upper half of a person is its body, the lower its clothing; hair is drawn over the first row again."""
    drawing.image(folder / f"{name}_{t:04d}_env.png", np.where(instances == 0, 255, 0).astype(np.uint8))
    for person in range(1, int(instances.max()) + 1):
        where = instances == person
        rows = np.flatnonzero(where.any(1))
        upper = np.arange(len(where))[:, None] < rows.mean() if len(rows) else False
        for part, mask in (("body", where & upper), ("clothing", where & ~np.asarray(upper)), ("hair", where & upper)):
            path = folder / f"{name}_{t:04d}_{person - 1:02d}_{part}.png"
            drawing.image(path, np.where(mask, 255, 0).astype(np.uint8))


def table(true: drawing.Truth) -> str:
    """Unreal's rows: centimeters, degrees, millimeters. Its world is x forward, y right, z up: (y, -z, x) of it is ours."""
    rows = [COLUMNS]
    sensor_width = 36.0
    focal = true.k[0, 0] / drawing.WIDTH * sensor_width
    sensor_height = focal / true.k[1, 1] * drawing.HEIGHT
    hfov = np.degrees(2 * np.arctan(sensor_width / 2 / focal))
    for t, pose in enumerate(true.world_from_cam):
        right, down, forward, place = (np.array([v[2], v[0], -v[1]]) for v in pose[:3].T)
        yaw, pitch = np.arctan2(forward[1], forward[0]), np.arcsin(forward[2])
        roll = np.arctan2(-right[2], -down[2])
        numbers = (*(100 * place), *np.degrees([yaw, pitch, roll]), focal, sensor_width, sensor_height, hfov)
        rows.append(f"seq_{t:04d}," + ",".join(f"{number:.12g}" for number in numbers))
    return "\n".join(rows) + "\n"
