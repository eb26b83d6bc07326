"""Six smaller data sets as their documentation says they are laid out."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from miniatures import drawing
from PIL import Image

TAG = 202021.25


def kitti(root: Path) -> drawing.Truth:
    """Virtual KITTI 2. K has its origin at the center of the first pixel; flow and scene flow are 16-bit colors."""
    true = drawing.true()
    top, (height, width) = root / "Scene01/clone", true.z.shape[1:]
    size = np.array([width - 1, height - 1])
    k = (true.k[0, 0], true.k[1, 1], true.k[0, 2] - 0.5, true.k[1, 2] - 0.5)
    intrinsic, extrinsic = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 r1,2 r1,3 t1 ..."]
    for t in range(len(true.z)):
        raw = np.rint(100 * true.z[t]).astype(np.uint16)
        raw[0, :4] = 65535
        drawing.image(top / f"frames/rgb/Camera_0/rgb_{t:05d}.jpg", true.clip.rgb[t])
        drawing.image(top / f"frames/depth/Camera_0/depth_{t:05d}.png", raw)
        path = top / f"frames/instanceSegmentation/Camera_0/instancegt_{t:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _palette(true.instances[t]).save(path)
        for camera in (0, 1):
            shift = np.eye(4)
            shift[0, 3] = -0.5 * camera
            intrinsic.append(f"{t} {camera} " + " ".join(f"{n:.12g}" for n in k))
            extrinsic.append(f"{t} {camera} " + " ".join(f"{n:.12g}" for n in (shift @ true.cam_from_world[t]).ravel()))
    for t in range(len(true.z) - 1):
        known = np.ones((height, width))
        known[9, 9] = 0
        for kind, number, flow in (
            ("forwardFlow", t, true.clip.flow.forward[t]),
            ("backwardFlow", t + 1, true.clip.flow.backward[t]),
        ):
            color = np.concatenate(((flow / size + 1) / 2, known[..., None]), axis=-1)
            drawing.image(
                top / f"frames/{kind}/Camera_0/flow_{number:05d}.png", np.rint(65535 * color).astype(np.uint16)
            )
        color = (_in_camera(true, t) / 10 + 1) / 2
        drawing.image(
            top / f"frames/forwardSceneFlow/Camera_0/sceneFlow_{t:05d}.png", np.rint(65535 * color).astype(np.uint16)
        )
    drawing.text(top / "intrinsic.txt", "\n".join(intrinsic) + "\n")
    drawing.text(top / "extrinsic.txt", "\n".join(extrinsic) + "\n")
    return true


def _palette(ids: np.ndarray) -> Image.Image:
    """Indexed: 0 is the background, and it is not black."""
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([90, 120, 30, 200, 10, 10, 20, 200, 60, 10, 40, 220, 250, 240, 0])
    return image


def _in_camera(true: drawing.Truth, t: int) -> np.ndarray:
    """p_cam(t + 1) - p_cam(t) of what is seen at t."""
    there = true.p_world[t] + true.scene_flow[t]
    cams = true.cam_from_world
    here = true.rays() * true.z[t][..., None]
    return there @ cams[t + 1, :3, :3].T + cams[t + 1, :3, 3] - here


def spring(root: Path) -> drawing.Truth:
    """Numbers from 1; maps of twice the size, in pixels of the pictures."""
    true = drawing.true()
    folder, focal = root / "train/0001", true.k[0, 0]
    for t in range(len(true.z)):
        n = t + 1
        disparity = focal * 0.065 / true.z[t]
        disparity[0, :4] = np.nan
        drawing.image(folder / f"frame_left/frame_left_{n:04d}.png", true.clip.rgb[t])
        _hdf5(folder / f"disp1_left/disp1_left_{n:04d}.dsp5", "disparity", disparity)
        if t + 1 < len(true.z):
            z_there = _in_camera(true, t)[..., 2] + true.z[t]
            _hdf5(folder / f"disp2_FW_left/disp2_FW_left_{n:04d}.dsp5", "disparity", focal * 0.065 / z_there)
            _hdf5(folder / f"flow_FW_left/flow_FW_left_{n:04d}.flo5", "flow", true.clip.flow.forward[t])
        if t:
            _hdf5(folder / f"flow_BW_left/flow_BW_left_{n:04d}.flo5", "flow", true.clip.flow.backward[t - 1])
    k = (true.k[0, 0], true.k[1, 1], true.k[0, 2], true.k[1, 2])
    drawing.text(folder / "cam_data/intrinsics.txt", "".join(" ".join(map(repr, map(float, k))) + "\n" for _ in true.z))
    rows = (" ".join(map(repr, map(float, pose.ravel()))) + "\n" for pose in true.cam_from_world)
    drawing.text(folder / "cam_data/extrinsics.txt", "".join(rows))
    return true


def _hdf5(path: Path, key: str, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=values.astype(np.float32).repeat(2, 0).repeat(2, 1), compression="gzip")


def sintel(root: Path) -> drawing.Truth:
    """K has its origin at the center of the first pixel; masks are white where something is wrong."""
    true = drawing.true()
    half = root / "training"
    k = true.k - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    for t in range(len(true.z)):
        name = f"alley_1/frame_{t + 1:04d}"
        drawing.image(half / f"final/{name}.png", true.clip.rgb[t])
        _tagged(half / f"depth/{name}.dpt", true.z[t])
        camera = struct.pack("<f", TAG) + k.astype("<f8").tobytes() + true.cam_from_world[t, :3].astype("<f8").tobytes()
        _bytes(half / f"camdata_left/{name}.cam", camera)
        if t + 1 < len(true.z):
            _tagged(half / f"flow/{name}.flo", true.clip.flow.forward[t])
            hidden = np.zeros(true.z[t].shape, np.uint8)
            hidden[4, 4] = 255
            drawing.image(half / f"occlusions/{name}.png", hidden)
            drawing.image(half / f"invalid/{name}.png", np.roll(hidden, 3))
    return true


def _tagged(path: Path, values: np.ndarray) -> None:
    _bytes(path, struct.pack("<fii", TAG, values.shape[1], values.shape[0]) + values.astype("<f4").tobytes())


def _bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def still(height: int = drawing.HEIGHT, width: int = drawing.WIDTH) -> drawing.Truth:
    """TartanAir's 90 degrees, moved through a room without its mover's motion."""
    return drawing.true("dolly", height=height, width=width, focal=width / 2)


def _ned(true: drawing.Truth) -> str:
    """tx ty tz qx qy qz qw of a body that flies x forward, y right, z down."""
    cam_from_body = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    lines = []
    for pose in true.world_from_cam:
        w, x, y, z = drawing.quaternion_wxyz(pose[:3, :3] @ cam_from_body)
        lines.append(" ".join(f"{n:.12g}" for n in (*pose[:3, 3], x, y, z, w)))
    return "\n".join(lines) + "\n"


def tartanair(root: Path, env: str = "office") -> drawing.Truth:
    """The moving box is masked, as what is dynamic."""
    true = still()
    folder = root / env / "Easy/P001"
    for t in range(len(true.z)):
        z = true.z[t].copy()
        z[0, :4] = 10000
        drawing.image(folder / f"image_left/{t:06d}_left.png", true.clip.rgb[t])
        _npy(folder / f"depth_left/{t:06d}_left_depth.npy", z)
        if t + 1 < len(true.z):
            _npy(folder / f"flow/{t:06d}_{t + 1:06d}_flow.npy", true.clip.flow.forward[t])
            _npy(
                folder / f"flow/{t:06d}_{t + 1:06d}_mask.npy", np.where(true.instances[t] > 0, 100, 0).astype(np.uint8)
            )
    drawing.text(folder / "pose_left.txt", _ned(true))
    return true


def tartanair_v2(root: Path, *, npz: bool = False) -> drawing.Truth:
    """Square; depth's bytes are blue, green, red, alpha; flow is blue and green, its mask red."""
    true = still(48, 48)
    folder = root / "Office/Data_easy/P001"
    for t in range(len(true.z)):
        drawing.image(folder / f"image_lcam_front/{t:06d}_lcam_front.png", true.clip.rgb[t])
        bgra = true.z[t].astype("<f4").view(np.uint8).reshape(48, 48, 4)
        drawing.image(folder / f"depth_lcam_front/{t:06d}_lcam_front_depth.png", bgra[..., [2, 1, 0, 3]])
        if t + 1 < len(true.z):
            ahead, back = true.clip.flow.forward[t], true.clip.flow.backward[t]
            stem = folder / f"flow_lcam_front/{t:06d}_{t + 1:06d}_flow"
            if npz:
                stem.parent.mkdir(parents=True, exist_ok=True)
                both = {"flow_fwd": ahead.transpose(2, 0, 1)[None], "flow_bwd": back.transpose(2, 0, 1)[None]}
                np.savez(stem.with_suffix(".npz"), **both)
            else:
                codes = np.rint(64 * ahead + 32768).astype(np.uint16)
                drawing.image(
                    stem.with_suffix(".png"), np.dstack((np.zeros((48, 48), np.uint16), codes[..., 1], codes[..., 0]))
                )
    drawing.text(folder / "pose_lcam_front.txt", _ned(true))
    return true


def _npy(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def kubric(root: Path, *, depth: str = "png", swapped: bool = True, rays: bool = True) -> drawing.Truth:
    """`depth`: 16 bits with a range, or floats; `swapped` and `rays` are how it is: (rows, columns), and lengths of rays."""
    true = drawing.true("many_moving")
    folder = root / "movi_a/0"
    slant = np.linalg.norm(true.rays(), axis=-1) if rays else 1.0
    flows = {"forward_flow": true.clip.flow.forward, "backward_flow": true.clip.flow.backward}
    ranges: dict[str, Any] = {"depth": {"min": 0.5, "max": 20.0}}
    ranges |= {kind: {"min": float(flow.min()), "max": float(flow.max())} for kind, flow in flows.items()}
    for t in range(len(true.z)):
        rgba = np.dstack((true.clip.rgb[t], np.full(true.z[t].shape, 255, np.uint8)))
        drawing.image(folder / f"rgba_{t:05d}.png", rgba)
        length = true.z[t] * slant
        if depth == "png":
            drawing.image(folder / f"depth_{t:05d}.png", np.rint((length - 0.5) / 19.5 * 65535).astype(np.uint16))
        elif depth == "tiff":
            drawing.image(folder / f"depth_{t:05d}.tiff", length.astype(np.float32))
        else:
            _npy(folder / f"depth_{t:05d}.npy", length.astype(np.float32))
        drawing.image(folder / f"segmentation_{t:05d}.png", true.instances[t].astype(np.uint8))
    for kind, flow in flows.items():
        for t, one in enumerate(flow):
            number = t if kind == "forward_flow" else t + 1
            low, high = ranges[kind]["min"], ranges[kind]["max"]
            codes = np.rint(
                (one[..., ::-1] if swapped else one) / 1.0 * 65535 / (high - low) - low * 65535 / (high - low)
            )
            drawing.image(folder / f"{kind}_{number:05d}.png", np.dstack((codes, codes[..., 0] * 0)).astype(np.uint16))
    opengl = true.world_from_cam @ np.diag([1.0, -1, -1, 1])
    bodies = [_body(true, number) for number in range(1, 5)]
    drawing.document(
        folder / "metadata.json",
        {
            "metadata": {"num_frames": len(true.z), "frame_rate": 12, "resolution": [drawing.WIDTH, drawing.HEIGHT]},
            "camera": {"focal_length": 35.0, "sensor_width": 35.0 * drawing.WIDTH / true.k[0, 0], **_poses(opengl)},
            "instances": [_poses(body) for body in bodies],
        },
    )
    drawing.document(folder / "data_ranges.json", ranges)
    return true


def _poses(poses: np.ndarray) -> dict[str, Any]:
    quaternions = [drawing.quaternion_wxyz(pose[:3, :3]).tolist() for pose in poses]
    return {"positions": poses[:, :3, 3].tolist(), "quaternions": quaternions}


def _body(true: drawing.Truth, number: int) -> np.ndarray:
    """world_from_body of one mover: its steps are those that its true scene flow shows."""
    poses = [np.eye(4)]
    for t in range(len(true.z) - 1):
        where = true.instances[t] == number
        a = true.p_world[t][where].astype(np.float64)
        b = a + true.scene_flow[t][where]
        u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
        step = np.eye(4)
        step[:3, :3] = vt.T @ np.diag([1, 1, np.linalg.det(vt.T @ u.T)]) @ u.T
        step[:3, 3] = b.mean(0) - step[:3, :3] @ a.mean(0)
        poses.append(step @ poses[-1])
    return np.stack(poses)


def realestate10k(root: Path, *, frames: bool = True) -> drawing.Truth:
    """Text with K in shares, and the frames that people fetched themselves."""
    true = drawing.true("dolly")
    share = (true.k[0, 0] / drawing.WIDTH, true.k[1, 1] / drawing.HEIGHT, 0.5, 0.5)
    lines = ["https://www.youtube.com/watch?v=x"]
    for t, pose in enumerate(true.cam_from_world):
        time = 5_000_000 + round(t * 1e6 / 30)
        lines.append(f"{time} " + " ".join(f"{n:.12g}" for n in (*share, 0, 0, *pose[:3].ravel())))
        if frames:
            drawing.image(root / f"train/00a1/{time}.png", true.clip.rgb[t])
    drawing.text(root / "train/00a1.txt", "\n".join(lines) + "\n")
    return true
