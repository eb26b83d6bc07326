"""SpatialVID and Panda-70M as their documentation says they are laid out."""

import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from miniatures import drawing

UUID = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"
FPS = 30


def write(root: Path, *, every: int = 1, depth_size: int = 1, torn: int | None = None) -> Path:
    """One video of the exact scene; every so many frames have cameras, depth and masks. Returns the video."""
    true = drawing.true(frames=1 + every * (drawing.FRAMES - 1), height=48 * 2, width=64 * 2)
    video = root / f"videos/group_0001/{UUID}.mp4"
    movie(video, true.clip.rgb)
    notes = root / f"annotations/group_0001/{UUID}"
    known = np.arange(0, len(true.z), every)
    cam = true.cam_from_world[known]
    quats = np.array([drawing.quaternion_wxyz(pose[:3, :3]) for pose in cam])
    notes.mkdir(parents=True)
    np.save(notes / "poses.npy", np.concatenate((cam[:, :3, 3], quats[:, [1, 2, 3, 0]]), axis=1))
    height, width = true.z.shape[1:]
    share = np.array([true.k[0, 0] / width, true.k[1, 1] / height, true.k[0, 2] / width, true.k[1, 2] / height])
    np.save(notes / "intrinsics.npy", np.tile(share, (len(known), 1)))
    drawing.text(notes / "indexes.txt", "".join(f"{k} {frame}\n" for k, frame in enumerate(known)))
    drawing.document(notes / "caption.json", {"SceneSummary": "a box sways in a room", "CameraMotion": "to the right"})
    _masks(notes / "dyn_masks.npz", true.instances[known] > 0)
    _depth(root / f"depths/group_0001/{UUID}.zip", true.z[known][:, ::depth_size, ::depth_size], torn)
    table = "id,group id,video path,num frames,fps,Motion Score,aesthetic score,moveDist\n"
    drawing.text(root / "data/train/SpatialVID_HQ_metadata.csv", table + f"{UUID},group_0001,x,5,30,3.5,4.25,0.1\n")
    return video


def _depth(path: Path, z: np.ndarray, torn: int | None) -> None:
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for k, one in enumerate(z):
            part = path.parent / "part.exr"
            drawing.exr(part, {"Z": (1 / one).astype(np.float16)})
            data = part.read_bytes()
            part.unlink()
            archive.writestr(f"{k:05d}.exr", data[:100] if k == torn else data)


def _masks(path: Path, masks: np.ndarray) -> None:
    arrays: dict[str, Any] = {"shape": np.array(masks.shape)}
    for k, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        arrays[f"f_{k}_data"] = np.ones(len(rows), np.uint8)
        arrays[f"f_{k}_indices"] = columns
        arrays[f"f_{k}_indptr"] = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=mask.shape[0]))))
    np.savez_compressed(path, **arrays)


def movie(path: Path, rgb: np.ndarray) -> None:
    """An H.264 file at 30 frames/s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width = rgb.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in rgb:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def panda(root: Path, key: str, *, video: bool = True, **facts: Any) -> None:
    """One clip of Panda-70M as video2dataset leaves it."""
    stem = root / "00000" / key
    told = {
        "caption": "a box sways",
        "matching_score": 0.5,
        "status": "success",
        "desirable_filtering": "desirable",
        "shot_boundary_detection": [["0:00:00.000", "0:00:01.000"]],
    }
    drawing.document(stem.with_suffix(".json"), told | facts)
    drawing.text(stem.with_suffix(".txt"), "a box sways")
    drawing.document(root / "00000_stats.json", {"successes": 1})
    if video:
        movie(stem.with_suffix(".mp4"), drawing.true(frames=9, height=96, width=128).clip.rgb)
