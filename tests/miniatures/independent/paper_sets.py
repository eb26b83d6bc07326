"""The paper's synthetic sets and BEDLAM2, written from their documentation: one function a layout, `name(root, world, ...)`."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import torch
from miniatures.independent import files
from miniatures.independent.world import World

PALETTE = np.array([(0, 0, 0), (190, 20, 30), (20, 200, 60), (40, 60, 220), (230, 220, 10)], np.uint8)


def point_odyssey(root: Path, world: World, *, split: str = "train", scene: str = "ani", num_tracks: int = 800) -> None:
    """u16 depth floored at 1000/65535 m, sky 65535; `extrinsics` is cam_from_world; one colour an object; tracks."""
    folder = root / split / scene
    raw = np.floor(np.where(world.sky, 1.0, np.minimum(world.z, 999.0) / 1000) * 65535)
    for t in range(world.num_frames):
        files.image(folder / f"rgbs/rgb_{t:05d}.jpg", world.rgb[t])
        files.image(folder / f"depths/depth_{t:05d}.png", raw[t].astype(np.uint16))
        files.image(folder / f"masks/mask_{t:05d}.png", PALETTE[np.maximum(world.ids[t], 0)])
        files.image(folder / f"normals/normal_{t:05d}.jpg", np.full((*world.z.shape[1:], 3), 128, np.uint8))
    points, pixels, visible, _ = world.tracks(num_tracks)
    np.savez(
        folder / "anno.npz",
        trajs_2d=pixels[..., :2].round().astype(np.float16),
        trajs_3d=points.astype(np.float32),
        visibs=visible,
        valids=np.ones_like(visible),
        intrinsics=np.tile(world.k, (world.num_frames, 1, 1)).astype(np.float32),
        extrinsics=world.cam_from_world.astype(np.float32),
    )
    np.savez(folder / "info.npz", num_frames=world.num_frames)
    files.text(folder / "scene_info.json", json.dumps({"characters": [], "fps": 30}))


BODIES = {1: "00", 2: "01", 3: "02"}
"""Boxes as persons: the first stands still."""


def bedlam(root: Path, world: World, *, scene: str = "20221010_3_2000_batch01", sequence: int = 0) -> None:
    """float32 centimetres in EXR, Unreal's yaw, pitch and roll, masks of body parts."""
    seq = f"seq_{sequence:06d}"
    folder = root / scene
    for t in range(world.num_frames):
        name = f"{seq}_{t:04d}"
        files.image(folder / f"png/{seq}/{name}.png", world.rgb[t])
        files.raw(folder / f"depth/{seq}/{name}_depth.exr", files.exr({"Depth": (world.z[t] * 100).astype(np.float32)}))
        _person_masks(folder / f"masks/{seq}", name, world, t)
    _unreal_csv(folder / f"ground_truth/camera/{seq}_camera.csv", world, seq)
    files.text(folder / f"ground_truth/meta_exr/{seq}_meta.json", json.dumps({"frames": world.num_frames}))
    comment = f'"sequence_name={seq};frames={world.num_frames};hdri=x"'
    rows = [
        "Index,Type,Body,X,Y,Z,Yaw,Pitch,Roll,Comment",
        f"0,Comment,,,,,,,,{comment}",
        "1,Group,,0,0,0,0,0,0,x",
        "2,Body,rp,1,2,3,4,5,6,y",
    ]
    files.text(folder / "be_seq.csv", "\n".join(rows) + "\n")


def bedlam2(root: Path, world: World, *, scene: str = "20240416_1_171_yogastudio", sequence: int = 0) -> None:
    """float16 centimetres, sharp images beside the depth, cameras of the depth's time; an actor out of view has no file."""
    seq = f"seq_{sequence:06d}"
    folder = root / scene
    for t in range(world.num_frames):
        name = f"{seq}_{t:04d}"
        files.image(
            folder / f"png/{seq}/{name}.png", np.full_like(world.rgb[t], 99)
        )  # blurred: must not be what is read
        files.image(folder / f"exr_layers/image/{seq}/{name}_image.png", world.rgb[t])
        depth = files.exr({"Depth": (world.z[t] * 100).astype(np.float16)})
        files.raw(folder / f"exr_layers/depth/{seq}/{name}_depth.exr", depth)
        _person_masks(folder / f"exr_layers/masks/{seq}", name, world, t)
    _unreal_csv(folder / f"ground_truth/meta_exr_depth_csv/{seq}_camera.csv", world, seq)


def _person_masks(folder: Path, name: str, world: World, t: int) -> None:
    ids = world.ids[t]
    rows = np.arange(world.height)[:, None]
    files.image(folder / f"{name}_env.png", np.where(ids <= 0, 255, 0).astype(np.uint8))
    for box, number in BODIES.items():
        parts = {"body": rows % 3 == 0, "clothing": rows % 3 == 1, "hair": rows % 3 == 2}
        for part, where in parts.items():
            if (ids == box).any():
                files.image(
                    folder / f"{name}_{number}_{part}.png", np.where((ids == box) & where, 255, 0).astype(np.uint8)
                )


def _unreal_csv(path: Path, world: World, seq: str) -> None:
    """Unreal: x north, y east, z up (left-handed), centimetres; the camera's forward, right and up axes as angles."""
    lines = ["name,x,y,z,yaw,pitch,roll,focal_length,sensor_width,sensor_height,hfov"]
    sensor_width = 36.0
    sensor_height = sensor_width * world.height / world.width
    focal = world.focal * sensor_width / world.width
    for t, pose in enumerate(world.world_from_cam):
        x, y, z = 100 * pose[[1, 0, 2], 3]
        forward, right, up = pose[[1, 0, 2], 2], pose[[1, 0, 2], 0], -pose[[1, 0, 2], 1]
        yaw, pitch = np.degrees(np.arctan2(forward[1], forward[0])), np.degrees(np.arcsin(forward[2]))
        roll = np.degrees(np.arctan2(-right[2], up[2]))
        hfov = np.degrees(2 * np.arctan(sensor_width / 2 / focal))
        values = (x, y, z, yaw, pitch, roll, focal, sensor_width, sensor_height, hfov)
        lines.append(",".join([f"{seq}_{t:04d}.png", *(repr(float(value)) for value in values)]))
    files.text(path, "\n".join(lines) + "\n")


def dynamic_replica(
    root: Path,
    world: World,
    *,
    split: str = "train",
    name: str = "3f1a2b_obj",
    ndc: str = "ndc_isotropic",
    tracks: bool = True,
) -> None:
    """PyTorch3D cameras, the bits of float16 in PNGs, flow as double-wide PNGs; adds to the split's index."""
    base, entries = root / split, []
    for camera in ("left", "right"):
        sequence = f"{name}_source_{camera}"
        for t in range(world.num_frames):
            entry = _replica_frame(base, world, t, camera, name, sequence, ndc)
            if camera == "left" and tracks:
                entry["trajectories"] = {"path": f"{sequence}/trajectories/{t:06d}.pth"}
                _replica_tracks(base / f"{sequence}/trajectories/{t:06d}.pth", world, t)
            entries.append(entry)
    index = base / f"frame_annotations_{split}.jgz"
    if index.exists():
        entries = json.loads(gzip.decompress(index.read_bytes())) + entries
    files.raw(index, gzip.compress(json.dumps(entries).encode()))


def _replica_frame(base: Path, world: World, t: int, camera: str, name: str, sequence: str, ndc: str) -> dict:
    stem = f"{name}_{camera}-{t:04d}"
    paths = {
        "image": f"{sequence}/images/{stem}.png",
        "depth": f"{sequence}/depths/{stem}_{t:04d}.geometric.png",
        "mask": f"{sequence}/masks/{stem}.png",
        "ids": f"{sequence}/instance_id_maps/{stem}.png",
    }
    z = np.where(world.sky[t], 0, world.z[t])
    files.image(base / paths["image"], world.rgb[t])
    files.image(base / paths["depth"], z.astype(np.float16).view(np.uint16))
    files.image(base / paths["mask"], np.where(world.ids[t] >= 2, 255, 0).astype(np.uint8))
    files.image(base / paths["ids"], np.maximum(world.ids[t], 0).astype(np.uint8))
    flows = {}
    for way, other in (("forward", t + 1), ("backward", t - 1)):
        key, flow_path = f"flow_{way}", f"{sequence}/flow_{way}/{stem}.png"
        if not 0 <= other < world.num_frames:
            flows |= {key: {"path": None}, key + "_mask": {"path": None}}
            continue
        flow, defined, visible, _ = world.flow(t, other)
        bits = np.concatenate((flow[..., 0], flow[..., 1]), axis=1).astype(np.float16).view(np.uint16)
        files.image(base / flow_path, bits)
        mask_path = f"{sequence}/flow_{way}_mask/{stem}.png"
        files.image(base / mask_path, np.where(defined & visible, 255, 0).astype(np.uint8))
        flows |= {key: {"path": flow_path}, key + "_mask": {"path": mask_path}}
    half = np.array((world.width, world.height)) / 2
    scale = np.full(2, half.min()) if ndc == "ndc_isotropic" else half
    flip = np.diag((-1, -1, 1))
    viewpoint = {
        "R": (world.cam_from_world[t, :3, :3].T @ flip).tolist(),
        "T": (flip @ world.cam_from_world[t, :3, 3]).tolist(),
        "focal_length": (world.intrinsics[:2] / scale).tolist(),
        "principal_point": ((half - world.intrinsics[2:]) / scale).tolist(),
        "intrinsics_format": ndc,
    }
    return {
        "sequence_name": name,
        "frame_number": t,
        "frame_timestamp": t / 30,
        "camera_name": camera,
        "image": {"path": paths["image"], "size": [world.height, world.width]},
        "depth": {"path": paths["depth"], "scale_adjustment": 1.0, "mask_path": None},
        "mask": {"path": paths["mask"], "mass": 1.0},
        "instance_id_map_path": {"path": paths["ids"]},
        "viewpoint": viewpoint,
        "trajectories": None,
        **flows,
    }


def _replica_tracks(path: Path, world: World, t: int) -> None:
    points, pixels, visible, ids = world.tracks(800)
    image = torch.from_numpy(world.rgb[t])
    found = {
        "traj_2d": torch.from_numpy(pixels[t]).float(),
        "traj_3d_world": torch.from_numpy(points[t]).float(),
        "verts_inds_vis": torch.from_numpy(visible[t]),
        "instances": torch.from_numpy(np.where(ids >= 2, ids, 0)),
        "img": image,
    }
    buffer = io.BytesIO()
    torch.save(found, buffer)
    files.raw(path, buffer.getvalue())


def omniworld(
    root: Path, world: World, *, uid: str = "0a1b2c3d4e5f", metric_scale: float = 25.0, first: int = 0
) -> None:
    """Everything of a uid in one folder below `annotations`, pictures below `videos`; depths in scene units, one split."""
    folder, pictures = (root / top / "OmniWorld-Game" / uid for top in ("annotations", "videos"))
    frames = [first + t for t in range(world.num_frames)]
    for t, number in enumerate(frames):
        units = np.where(world.sky[t], np.inf, world.z[t]) / metric_scale * 0.004
        inverse = np.where(world.sky[t], 1.0, 1000 / (999 + 1 / np.where(world.sky[t], 1.0, units)))
        files.image(pictures / f"color/{number:06d}.png", world.rgb[t])
        files.image(folder / f"depth/{number:06d}.png", np.round(inverse * 65535).astype(np.uint16))
        files.image(folder / f"gdino_mask/{number:06d}.png", np.where(world.ids[t] == 3, 255, 0).astype(np.uint8))
    masks = {f"{n:06d}.png": {"mask_rle": coco_rle(world.ids[t] == 2)} for t, n in enumerate(frames)}
    files.text(folder / "subject_masks/split_0.json", json.dumps(masks))
    camera = {
        "focals": [world.focal] * world.num_frames,
        "cx": world.width / 2,
        "cy": world.height / 2,
        "quats": [quaternion(pose[:3, :3]).tolist() for pose in world.cam_from_world],
        "trans": (world.cam_from_world[:, :3, 3] / metric_scale).tolist(),
    }
    files.text(folder / "camera/split_0.json", json.dumps(camera))
    caption = {"captions": {"Short": "A box.", "PC": "A box moves.", "Video_Caption": "A box moves through a room."}}
    files.text(folder / f"text/{frames[0]:06d}_{frames[-1]:06d}.json", json.dumps(caption))
    files.text(folder / "fps.txt", "FPS: 24.0\n")
    info = {"scene_name": uid, "split_num": 1, "split": [frames], "invalid_frame": []}
    files.text(folder / "split_info.json", json.dumps(info))
    table = root / "metadata/OmniWorld-Game_metadata.csv"
    rows = table.read_text() if table.exists() else "UID,Split Num,Frame Num,Metric Scale\n"
    files.text(table, rows + f"{uid},1,{world.num_frames},{metric_scale}\n")


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a 3 x 3 rotation: the eigenvector of Bar-Itzhack's symmetric matrix."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, zx + xz],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, zx + xz, zy + yz, zz - xx - yy],
        ]
    )
    return np.linalg.eigh(matrix)[1][:, -1]


def coco_rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths: columns first, each count less the one two before, 5 bits a character."""
    flat = mask.T.ravel().astype(int)
    edges = [*np.flatnonzero(np.diff(np.concatenate(([0], flat)))).tolist(), flat.size]
    counts = np.diff(np.concatenate(([0], edges))).tolist()
    letters = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            low = value & 31
            value >>= 5
            more = value != (-1 if low & 16 else 0)
            letters += chr(48 + (low | (32 if more else 0)))
            if not more:
                break
    return {"size": list(mask.shape), "counts": letters}
