"""What importing costs at real size: CPU seconds a scene to open and check, milliseconds a frame to load, peak memory of a worker.

python tests/benchmarks/bench_datasets.py [--frames 49] [SET ...]

Every layout is written by the tests' second writer at the size of the real set's pictures, so many frames (Kubric: 24 at most) of a
world whose pixels are drawn large, into a temporary folder; each set is imported in a process of its own, one thread, into clips of
480 x 720. `pointodyssey_2000` is a whole scene of 2,000 frames with 20,000 tracks; `dynamic_replica_index` opens one scene of an
index of 145,200 frames.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from miniatures import drawing, spatialvid  # noqa: E402
from miniatures.independent import extra_sets, movi, paper_sets  # noqa: E402
from miniatures.independent.world import World  # noqa: E402

from pipelines import recipes, work  # noqa: E402
from pipelines.datasets import DATASETS  # noqa: E402

FRAMES = int(sys.argv[sys.argv.index("--frames") + 1]) if "--frames" in sys.argv else 49


@dataclass(frozen=True)
class Enlarged(World):
    """The second writer's world, drawn small and enlarged: `factor` squared pixels show the same surface, in its true depth."""

    factor: int = 4

    @cached_property
    def small(self) -> World:
        f = self.factor
        size = (self.num_frames, self.width // f, self.height // f, self.focal / f, self.ceiling)
        return World(*size, boxes_move=self.boxes_move)

    def _large(self, image: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(image, self.factor, axis=0), self.factor, axis=1)

    @cached_property
    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z, ids = (np.stack([self._large(image) for image in images]) for images in self.small.seen[:2])
        fx, fy, cx, cy = self.intrinsics
        uv = self.centers()
        rays = np.stack(((uv[..., 0] - cx) / fx, (uv[..., 1] - cy) / fy, np.ones(uv.shape[:-1])), axis=-1)
        points = [
            pose[:3, 3] + np.where(np.isfinite(one), one, 1.0)[..., None] * (rays @ pose[:3, :3].T)
            for one, pose in zip(z, self.world_from_cam)
        ]
        return z, ids, np.stack(points).astype(np.float32)

    @cached_property
    def rgb(self) -> np.ndarray:
        return np.stack([self._large(image) for image in self.small.rgb])

    def flow(self, t: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        flow, defined, visible, moved = (self._large(part) for part in self.small.flow(t, other))
        return flow * self.factor, defined, visible, moved

    def tracks(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        points, pixels, visible, ids = self.small.tracks(count, seed)
        return points, pixels * (self.factor, self.factor, 1), visible, ids


def large(height: int, width: int, *, factor: int = 4, frames: int = FRAMES, **world: Any) -> Enlarged:
    return Enlarged(frames, width, height, world.pop("focal", 0.8 * width), factor=factor, **world)


def _spatialvid(root: Path) -> None:
    """Miniatures' world at 1080p; depth at a quarter of that."""
    drawing.FRAMES, true = FRAMES, drawing.true
    small = true(frames=FRAMES, height=135, width=240)
    video = root / f"videos/group_0001/{spatialvid.UUID}.mp4"
    spatialvid.movie(video, small.clip.rgb.repeat(8, 1).repeat(8, 2))
    notes = root / f"annotations/group_0001/{spatialvid.UUID}"
    notes.mkdir(parents=True)
    cam = small.cam_from_world
    quats = np.array([drawing.quaternion_wxyz(pose[:3, :3]) for pose in cam])
    np.save(notes / "poses.npy", np.concatenate((cam[:, :3, 3], quats[:, [1, 2, 3, 0]]), axis=1))
    np.save(notes / "intrinsics.npy", np.tile([small.k[0, 0] / 240, small.k[1, 1] / 135, 0.5, 0.5], (FRAMES, 1)))
    drawing.text(notes / "indexes.txt", "".join(f"{k} {k}\n" for k in range(FRAMES)))
    drawing.document(notes / "caption.json", {"SceneSummary": "a box sways"})
    spatialvid._masks(notes / "dyn_masks.npz", (small.instances > 0).repeat(2, 1).repeat(2, 2))
    spatialvid._depth(root / f"depths/group_0001/{spatialvid.UUID}.zip", small.z.repeat(2, 1).repeat(2, 2), None)


def _panda(root: Path) -> None:
    spatialvid.panda(root, "0000001_00000", video=False)
    small = drawing.true(frames=FRAMES, height=90, width=160)
    spatialvid.movie(root / "00000/0000001_00000.mp4", small.clip.rgb.repeat(4, 1).repeat(4, 2))


def _movi(root: Path) -> None:
    """A record of MOVi-F's size: with normals and object coordinates, which nobody reads."""
    unread = [bytes(600_000)] * min(24, FRAMES)
    world = large(512, 512, frames=min(24, FRAMES), ceiling=True)
    movi.write(root, world, change=lambda flat: flat.update(normal=unread, object_coordinates=unread))


def _whole_scene(root: Path) -> None:
    """Two hundred different frames, linked ten times over; tracks that fill their arrays."""
    folder, frames, rng = root / "train/ani", 2000, np.random.default_rng(0)
    for t in range(frames):
        for kind, ending in (("rgbs/rgb", "jpg"), ("depths/depth", "png"), ("masks/mask", "png")):
            path = folder / f"{kind}_{t:05d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if t >= 200:
                path.hardlink_to(folder / f"{kind}_{t % 200:05d}.{ending}")
                continue
            smooth = cv2.resize(rng.random((9, 16, 3), np.float32), (960, 540))
            picture = {
                "depths/depth": np.full((540, 960), 262, np.uint16),
                "rgbs/rgb": (255 * smooth).astype(np.uint8),
                "masks/mask": (smooth > 0.8).astype(np.uint8) * 255,
            }[kind]
            cv2.imwrite(str(path), picture)
    k = np.array([[800, 0, 480], [0, 800, 270], [0, 0, 1]], np.float32)
    points = rng.uniform((-2, -1, 4.0), (2, 1, 4.02), (20_000, 3)).astype(np.float32)
    seen = np.ones(len(points), bool)
    each = {
        "extrinsics": np.eye(4, dtype=np.float32),
        "intrinsics": k,
        "trajs_3d": points,
        "visibs": seen,
        "valids": seen,
    }
    with zipfile.ZipFile(folder / "anno.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, one in each.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": one.dtype.str, "fortran_order": False, "shape": (frames, *one.shape)}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(frames):
                    file.write(one.tobytes())


def _whole_index(root: Path) -> None:
    """The sequence of the small world among others, 145,200 frames in all."""
    paper_sets.dynamic_replica(root, World(num_frames=9))
    index = root / "train/frame_annotations_train.jgz"
    entries = json.loads(gzip.decompress(index.read_bytes()))
    others = (entry | {"sequence_name": f"{n:06d}_obj"} for n in range(145_200 // len(entries)) for entry in entries)
    with gzip.open(index, "wt", compresslevel=1) as file:
        file.write("[" + ", ".join(map(json.dumps, entries)))
        for entry in others:
            file.write(", " + json.dumps(entry))
        file.write("]")


@dataclass(frozen=True)
class Case:
    kind: str
    write: Callable[[Path], None]
    fps: float
    frames: int = FRAMES
    size: str = ""


def _of(writer: Callable[..., None], height: int, width: int, **world: Any) -> Callable[[Path], None]:
    return lambda root: writer(root, large(height, width, **world))


CASES = {
    "pointodyssey": Case("pointodyssey", _of(paper_sets.point_odyssey, 540, 960), 30, size="960 x 540"),
    "pointodyssey_2000": Case("pointodyssey", _whole_scene, 30, size="960 x 540, 2,000 frames"),
    "bedlam": Case("bedlam", _of(paper_sets.bedlam, 720, 1280), 30, size="1280 x 720"),
    "bedlam2": Case("bedlam2", _of(paper_sets.bedlam2, 720, 1280), 30, size="1280 x 720"),
    "dynamic_replica": Case("dynamic_replica", _of(paper_sets.dynamic_replica, 720, 1280), 30, size="1280 x 720"),
    "dynamic_replica_index": Case("dynamic_replica", _whole_index, 30, 9, "96 x 64, 145,200 frames"),
    "omniworld": Case("omniworld", _of(paper_sets.omniworld, 720, 1280), 24, size="1280 x 720"),
    "spatialvid": Case("spatialvid", _spatialvid, 30, size="1920 x 1080"),
    "panda70m": Case("panda70m", _panda, 30, size="640 x 360"),
    "tartanair": Case(
        "tartanair", _of(extra_sets.tartanair, 480, 640, focal=320.0, boxes_move=False), 8, size="640 x 480"
    ),
    "tartanair_v2": Case(
        "tartanair_v2", _of(extra_sets.tartanair_v2, 640, 640, focal=320.0, boxes_move=False), 8, size="640 x 640"
    ),
    "kubric": Case(
        "kubric", _of(extra_sets.kubric, 512, 512, frames=min(24, FRAMES)), 12, min(24, FRAMES), "512 x 512"
    ),
    "kubric_records": Case("kubric", _movi, 12, min(24, FRAMES), "512 x 512"),
    "spring": Case("spring", _of(extra_sets.spring, 1080, 1920, factor=8), 8, size="1920 x 1080"),
    "virtual_kitti2": Case(
        "virtual_kitti2", _of(extra_sets.virtual_kitti2, 375, 1242, factor=3), 10, size="1242 x 375"
    ),
    "sintel": Case("sintel", _of(extra_sets.sintel, 436, 1024), 24, size="1024 x 436"),
    "realestate10k": Case(
        "realestate10k", _of(extra_sets.realestate10k, 720, 1280, boxes_move=False), 10, size="1280 x 720"
    ),
    "mujoco": Case("mujoco", lambda root: None, 24, size="368 x 240"),
}


def measure(name: str, tree: str) -> None:
    """One line of the table."""
    case = CASES[name]
    knobs = [f"cut.frames={case.frames}", f"cut.fps={case.fps}", "cut.height=480", "cut.width=720"]
    recipe = recipes.annotate_recipe("embedded", knobs)
    dataset = DATASETS[case.kind]
    uri = next(iter(dataset.scenes("1" if case.kind == "mujoco" else tree)))
    entry = {"uri": uri, "dataset": case.kind, "licence": dataset.licence, "caption": ""}
    supplier = work.supplier(case.kind, recipe)
    cut_uri = f"{tree}-cut"
    start, began = peak_gib(), time.process_time()
    supplier.cut(entry, cut_uri)
    opened, began = time.process_time() - began, time.process_time()
    clip = supplier.load(cut_uri, 0)
    loaded = (time.process_time() - began) / len(clip.rgb)
    peak = peak_gib()
    figures = f"{opened:.1f} | {1000 * loaded:.0f} | {peak:.2f} | {peak - start:.2f}"
    print(f"| {name} | {case.size} | {figures} |", flush=True)


def peak_gib() -> float:
    """Of this process alone: `getrusage` remembers its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main(names: list[str]) -> None:
    print("| set | pictures | open and check, CPU s | load, CPU ms a frame | peak, GiB | of it for the clip |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names or list(CASES):
        with tempfile.TemporaryDirectory() as temporary:
            tree = Path(temporary) / "tree"
            tree.mkdir()
            CASES[name].write(tree)
            asked = [sys.executable, __file__, "--measure", name, str(tree), "--frames", str(FRAMES)]
            subprocess.run(asked, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        import torch

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        measure(*sys.argv[2:4])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(CASES)}; all without")
        parser.add_argument("--frames", type=int, default=FRAMES, help="of a clip")
        asked = parser.parse_args()
        if unknown := [name for name in asked.sets if name not in CASES]:
            parser.error(f"{unknown[0]} is none of {', '.join(CASES)}")
        main(asked.sets)
