"""Import speed and memory at real size: one PointOdyssey scene of 2,000 frames at 960 x 540 with 20,000 tracks.

python tests/benchmarks/bench_datasets.py [FOLDER]
"""

import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np

from annotate.cut import Cut
from annotate.datasets import importing
from annotate.datasets.point_odyssey import PointOdyssey

FRAMES, TRACKS, HEIGHT, WIDTH = 2000, 20_000, 540, 960


def write(folder: Path) -> None:
    """Two hundred different frames, linked ten times over; tracks that fill their arrays."""
    rng = np.random.default_rng(0)
    for t in range(FRAMES):
        for kind, ending in (("rgbs/rgb", "jpg"), ("depths/depth", "png"), ("masks/mask", "png")):
            path = folder / f"{kind}_{t:05d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if t >= 200:
                path.hardlink_to(folder / f"{kind}_{t % 200:05d}.{ending}")
                continue
            smooth = cv2.resize(rng.random((9, 16, 3), np.float32), (WIDTH, HEIGHT))
            if kind == "depths/depth":
                cv2.imwrite(str(path), (200 + 400 * smooth[..., 0]).astype(np.uint16))
            else:
                cv2.imwrite(
                    str(path),
                    (255 * smooth).astype(np.uint8) if ending == "jpg" else (smooth > 0.8).astype(np.uint8) * 255,
                )
    pose, k = np.eye(4, dtype=np.float32), np.array([[800, 0, 480], [0, 800, 270], [0, 0, 1]], np.float32)
    with zipfile.ZipFile(folder / "anno.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in {
            "extrinsics": np.tile(pose, (FRAMES, 1, 1)),
            "intrinsics": np.tile(k, (FRAMES, 1, 1)),
        }.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        for name, one in (
            ("trajs_3d", rng.random((TRACKS, 3), np.float32)),
            ("visibs", np.ones(TRACKS, bool)),
            ("valids", np.ones(TRACKS, bool)),
        ):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": one.dtype.str, "fortran_order": False, "shape": (FRAMES, *one.shape)}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(FRAMES):
                    file.write(one.tobytes())


def main(folder: Path) -> None:
    if not (folder / "anno.npz").exists():
        write(folder)
    cut = Cut(frames=49, fps=8.0, height=480, width=720)
    began = time.perf_counter()
    scene = PointOdyssey().open(str(folder))
    spans = importing.spans(scene, cut, {})
    opened = time.perf_counter() - began
    began = time.perf_counter()
    clip = importing.load(scene, spans[-1], cut, "pointodyssey")
    loaded = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(spans)} clips listed in {opened:.1f} s; the last, {clip.shape}, loaded in {loaded:.1f} s: "
          f"{1000 * loaded / 49:.0f} ms a frame; peak {peak:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
