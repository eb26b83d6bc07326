"""The other sets with truth, written from their documentation: one function a layout, `name(root, world, ...)`."""

import json
import struct
from pathlib import Path

import h5py
import numpy as np
from miniatures.independent import files
from miniatures.independent.paper_sets import quaternion
from miniatures.independent.world import World

SPRING_BASELINE_M = 0.065


def tartanair(root: Path, world: World, *, env: str = "office") -> None:
    """f32 metres, poses camera-to-world in forward, right, down; flow of the camera alone with its mask."""
    folder = root / env / "Easy" / "P000"
    for t in range(world.num_frames):
        files.image(folder / f"image_left/{t:06d}_left.png", world.rgb[t])
        _npy(
            folder / f"depth_left/{t:06d}_left_depth.npy", np.where(world.sky[t], 10000, world.z[t]).astype(np.float32)
        )
        _npy(folder / f"seg_left/{t:06d}_left_seg.npy", np.maximum(world.ids[t], 0).astype(np.uint8))
        if t + 1 < world.num_frames:
            flow, defined, visible, _ = world.flow(t, t + 1)
            _npy(folder / f"flow/{t:06d}_{t + 1:06d}_flow.npy", flow.astype(np.float32))
            _npy(folder / f"flow/{t:06d}_{t + 1:06d}_mask.npy", np.where(defined & visible, 0, 100).astype(np.uint8))
    files.text(folder / "pose_left.txt", _ned_poses(world))


def tartanair_v2(root: Path, world: World, *, env: str = "ArchVizTinyHouseDay", npz: bool = False) -> None:
    """Depth as the bytes of a float32 in four channels; flow as u16 PNG or as npz of both ways."""
    folder = root / env / "Data_easy" / "P000"
    for t in range(world.num_frames):
        files.image(folder / f"image_lcam_front/{t:06d}_lcam_front.png", world.rgb[t])
        z = np.where(world.sky[t], 10000, world.z[t]).astype("<f4")
        bgra = z.view(np.uint8).reshape(*z.shape, 4)
        files.image(folder / f"depth_lcam_front/{t:06d}_lcam_front_depth.png", bgra[..., [2, 1, 0, 3]])
        if t + 1 == world.num_frames:
            continue
        flow, defined, visible, _ = world.flow(t, t + 1)
        name = folder / f"flow_lcam_front/{t:06d}_{t + 1:06d}_flow"
        if npz:
            back = world.flow(t + 1, t)[0]
            name.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                f"{name}.npz",
                flow_fwd=flow.transpose(2, 0, 1)[None].astype("f4"),
                flow_bwd=back.transpose(2, 0, 1)[None].astype("f4"),
            )
            continue
        scaled = np.round(flow * 64 + 32768).astype(np.uint16)
        bad = np.where(defined & visible, 0, np.where(defined, 1, 200)).astype(np.uint16)
        files.image(
            name.with_suffix(".png"), np.stack((bad, scaled[..., 1], scaled[..., 0]), axis=-1)
        )  # OpenCV reads u, v, mask
    files.text(folder / "pose_lcam_front.txt", _ned_poses(world))


def _ned_poses(world: World) -> str:
    """tx ty tz qx qy qz qw: body axes forward, right, down, in a world of north, east, down."""
    ned_from_world = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])
    lines = []
    for pose in world.world_from_cam:
        body = pose[:3, [2, 0, 1]]
        w, x, y, z = quaternion(ned_from_world @ body)
        lines.append(" ".join(f"{value:.12g}" for value in (*(ned_from_world @ pose[:3, 3]), x, y, z, w)))
    return "\n".join(lines) + "\n"


def _npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def kubric(root: Path, world: World, *, scene: str = "0", depth: str = "tiff") -> None:
    """Ray lengths, flow rows first and scaled to its range, OpenGL cameras, poses of every instance."""
    folder = root / scene
    fx, fy, cx, cy = world.intrinsics
    rays = np.linalg.norm(
        np.concatenate(((world.centers() - (cx, cy)) / (fx, fy), np.ones((*world.z.shape[1:], 1))), axis=-1), axis=-1
    )
    lengths = np.where(world.sky, 1e10 if depth == "tiff" else 60.0, world.z * rays)
    ranges: dict = {}
    for way in ("forward", "backward"):
        flows = []
        for t in range(world.num_frames):
            other = t + 1 if way == "forward" else t - 1
            inside = 0 <= other < world.num_frames
            flows.append(world.flow(t, other)[0][..., ::-1] if inside else np.zeros((*world.z.shape[1:], 2)))
        low, high = float(np.min(flows)), float(np.max(flows))
        ranges[f"{way}_flow"] = {"min": low, "max": high}
        for t, flow in enumerate(flows):
            raw = np.round((flow - low) / (high - low) * 65535).astype(np.uint16)
            files.image(folder / f"{way}_flow_{t:05d}.png", np.concatenate((raw, np.zeros_like(raw[..., :1])), axis=-1))
    for t in range(world.num_frames):
        files.image(
            folder / f"rgba_{t:05d}.png",
            np.concatenate((world.rgb[t], np.full((*world.z.shape[1:], 1), 255, np.uint8)), axis=-1),
        )
        files.image(folder / f"segmentation_{t:05d}.png", np.maximum(world.ids[t], 0).astype(np.uint8))
        if depth == "tiff":
            files.image(folder / f"depth_{t:05d}.tiff", lengths[t].astype(np.float32))
        else:
            low, high = float(lengths.min()), float(lengths.max())
            ranges["depth"] = {"min": low, "max": high}
            files.image(
                folder / f"depth_{t:05d}.png", np.round((lengths[t] - low) / (high - low) * 65535).astype(np.uint16)
            )
    flip = np.diag((1, -1, -1))
    metadata: dict = {"frame_rate": 12, "num_frames": world.num_frames, "resolution": [world.width, world.height]}
    metadata["depth_range"] = [ranges["depth"]["min"], ranges["depth"]["max"]] if "depth" in ranges else [0, 0]
    camera = {
        "focal_length": 35.0,
        "sensor_width": 35.0 * world.width / world.focal,
        "positions": world.world_from_cam[:, :3, 3].tolist(),
        "quaternions": [quaternion(pose[:3, :3] @ flip).tolist() for pose in world.world_from_cam],
    }
    instances = []
    for box in (1, 2, 3):
        poses = [world.box_pose(box, t) for t in range(world.num_frames)]
        instances.append(
            {
                "positions": [p[:3, 3].tolist() for p in poses],
                "quaternions": [quaternion(p[:3, :3]).tolist() for p in poses],
                "is_dynamic": box > 1,
            }
        )
    files.text(folder / "metadata.json", json.dumps({"metadata": metadata, "camera": camera, "instances": instances}))
    files.text(folder / "data_ranges.json", json.dumps(ranges))


def spring(root: Path, world: World, *, scene: str = "0001") -> None:
    """Disparity and flow in HDF5 at twice the size: pixel (i, j) of the picture is sample (2i, 2j)."""
    folder = root / "train" / scene
    for t in range(world.num_frames):
        n = t + 1
        files.image(folder / f"frame_left/frame_left_{n:04d}.png", world.rgb[t])
        _h5(folder / f"disp1_left/disp1_left_{n:04d}.dsp5", "disparity", _disparity(world, world.z[t]))
        for way, other in (("FW", t + 1), ("BW", t - 1)):
            if not 0 <= other < world.num_frames:
                continue
            flow, defined, _, _ = world.flow(t, other)
            flow = np.where(defined[..., None], flow, np.nan)
            _h5(folder / f"flow_{way}_left/flow_{way}_left_{n:04d}.flo5", "flow", flow)
            z = world.project(world.at(world.points[t], world.ids[t], t, other), other)[1]
            disparity = _disparity(world, np.where(defined, z, np.inf))
            _h5(folder / f"disp2_{way}_left/disp2_{way}_left_{n:04d}.dsp5", "disparity", disparity)
    rows = [" ".join(f"{value:.12g}" for value in world.intrinsics)] * world.num_frames
    files.text(folder / "cam_data/intrinsics.txt", "\n".join(rows) + "\n")
    rows = [" ".join(f"{value:.12g}" for value in pose.ravel()) for pose in world.cam_from_world]
    files.text(folder / "cam_data/extrinsics.txt", "\n".join(rows) + "\n")


def _disparity(world: World, z: np.ndarray) -> np.ndarray:
    return world.focal * SPRING_BASELINE_M / z


def _h5(path: Path, key: str, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(
            key, data=np.repeat(np.repeat(array, 2, axis=0), 2, axis=1).astype(np.float32), compression="gzip"
        )


def virtual_kitti2(root: Path, world: World, *, scene: str = "Scene01", variation: str = "clone") -> None:
    """u16 centimetres, flow and camera-frame scene flow scaled to 16 bits, integer-centre K, two cameras."""
    base = root / scene / variation
    intrinsics, extrinsics = (
        ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"],
        ["frame cameraID r1,1 r1,2 r1,3 t1 " + "x " * 11 + "1"],
    )
    size = np.array((world.width, world.height))
    for t in range(world.num_frames):
        for camera in (0, 1):
            _vkitti_frame(base / "frames", world, t, f"Camera_{camera}", size)
            fx, fy, cx, cy = world.intrinsics
            intrinsics.append(f"{t} {camera} {fx:.10g} {fy:.10g} {cx - 0.5:.10g} {cy - 0.5:.10g}")
            extrinsics.append(f"{t} {camera} " + " ".join(f"{value:.12g}" for value in world.cam_from_world[t].ravel()))
    files.text(base / "intrinsic.txt", "\n".join(intrinsics) + "\n")
    files.text(base / "extrinsic.txt", "\n".join(extrinsics) + "\n")


def _vkitti_frame(frames: Path, world: World, t: int, camera: str, size: np.ndarray) -> None:
    files.image(frames / f"rgb/{camera}/rgb_{t:05d}.jpg", world.rgb[t])
    depth = np.where(world.sky[t], 65535, np.round(np.where(world.sky[t], 1, world.z[t]) * 100)).astype(np.uint16)
    files.image(frames / f"depth/{camera}/depth_{t:05d}.png", depth)
    files.image(
        frames / f"instanceSegmentation/{camera}/instancegt_{t:05d}.png", np.maximum(world.ids[t], 0).astype(np.uint8)
    )
    for way, other in (("forward", t + 1), ("backward", t - 1)):
        if not 0 <= other < world.num_frames:
            continue
        flow, defined, _, _ = world.flow(t, other)
        scaled = np.round((flow / (size - 1) + 1) / 2 * 65535).clip(0, 65535)
        blue = np.where(defined, 65535, 0)
        files.image(frames / f"{way}Flow/{camera}/flow_{t:05d}.png", np.dstack((scaled, blue)).astype(np.uint16))
        onward = world.at(world.points[t], world.ids[t], t, other)
        here = world.points[t] @ world.cam_from_world[t, :3, :3].T + world.cam_from_world[t, :3, 3]
        there = onward @ world.cam_from_world[other, :3, :3].T + world.cam_from_world[other, :3, 3]
        scaled = np.round(((there - here).clip(-10, 10) / 10 + 1) / 2 * 65535)
        files.image(frames / f"{way}SceneFlow/{camera}/sceneFlow_{t:05d}.png", scaled.astype(np.uint16))


def sintel(root: Path, world: World, *, sequence: str = "alley_1") -> None:
    """`.dpt`, `.flo` and `.cam` with the tag 202021.25; no flow for the last frame; integer-centre K."""
    base, tag = root / "training", struct.pack("<f", 202021.25)
    k = world.k - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    for t in range(world.num_frames):
        name = f"{sequence}/frame_{t + 1:04d}"
        head = tag + struct.pack("<ii", world.width, world.height)
        for kind in ("final", "clean"):
            files.image(base / f"{kind}/{name}.png", world.rgb[t])
        files.raw(base / f"depth/{name}.dpt", head + np.where(world.sky[t], 1e8, world.z[t]).astype("<f4").tobytes())
        files.raw(
            base / f"camdata_left/{name}.cam",
            tag + k.astype("<f8").tobytes() + world.cam_from_world[t, :3].astype("<f8").tobytes(),
        )
        files.image(base / f"invalid/{name}.png", np.zeros(world.z.shape[1:], np.uint8))
        if t + 1 < world.num_frames:
            flow, _, visible, _ = world.flow(t, t + 1)
            files.raw(base / f"flow/{name}.flo", head + flow.astype("<f4").tobytes())
            files.image(base / f"occlusions/{name}.png", np.where(visible, 0, 255).astype(np.uint8))


def realestate10k(
    root: Path, world: World, *, clip: str = "0000cc6d8b108390", split: str = "train", fps: float = 10.0
) -> None:
    """Text alone, and frames named by their microseconds."""
    lines = ["https://www.youtube.com/watch?v=abc"]
    fx, fy, cx, cy = world.intrinsics / (world.width, world.height, world.width, world.height)
    for t in range(world.num_frames):
        stamp = round((20 + t / fps) * 1e6)
        numbers = (fx, fy, cx, cy, 0, 0, *world.cam_from_world[t, :3].ravel())
        lines.append(f"{stamp} " + " ".join(f"{value:.12g}" for value in numbers))
        files.image(root / split / clip / f"{stamp}.png", world.rgb[t])
    files.text(root / split / f"{clip}.txt", "\n".join(lines) + "\n")
