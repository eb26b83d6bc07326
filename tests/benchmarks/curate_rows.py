"""Curate a synthetic index: `python tests/benchmarks/curate_rows.py FOLDER ROWS [FILES]` prints seconds and peak memory.

Ten million rows in 100 files: 152 CPU seconds and 1.83 GiB at the most, one thread, the index made before.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from curate import select
from curate.recipe import CurateRecipe
from shared.index import FORMAT, INDEX

SCORES = {
    "rigid_flow_px": 0.4,
    "depth_ratio_4": 0.015,
    "scale_drift": 0.02,
    "sampson_px": 0.3,
    "pose_jerk": 0.5,
    "dyn_ratio": 0.1,
    "motion_strength": 0.005,
    "parallax": 0.2,
}
"""Each with the scale of its distribution: about two thirds of the clips are within all limits."""
MEMBERS = ("json", "rgb.mp4", "depth.wrz", "cameras.npz", "flow.forward.wrz", "flow.backward.wrz", "motion.wrz")


def index(rows: int, first: int, rng: np.random.Generator) -> pa.Table:
    """As annotation writes it; a twentieth of the clips look like another one."""
    ids = pa.array([f"{hash_:016x}" for hash_ in rng.integers(0, 2**63, rows)])
    sources = pa.array([f"s3://bucket/videos/{(first + i) // 5:09d}.mp4" for i in range(rows)])
    phash = rng.integers(-(2**63), 2**63, rows)
    alike = rng.random(rows) < 0.05
    phash[alike] = np.random.default_rng(0).integers(-(2**63), 2**63, 1000)[rng.integers(0, 1000, alike.sum())]
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * len(MEMBERS))
    members = [pa.array(MEMBERS * rows), *(pa.array(rng.integers(0, 2**33, rows * len(MEMBERS))) for _ in range(2))]
    columns = {
        "clip_id": ids,
        "status": pa.array(np.where(rng.random(rows) < 0.9, "annotated", "screened")),
        "source": sources,
        "dataset": pa.array(np.where(rng.random(rows) < 0.7, "video", "point_odyssey")),
        "num_frames": pa.array(np.full(rows, 49, np.int32)),
        "fps": pa.array(np.full(rows, 8, np.float32)),
        "caption": pa.array(["something moves through a room while the camera turns"] * rows),
        "phash": pa.array(phash),
        "shard": pa.array([f"x-{first // 1000:06d}.tar"] * rows),
        "parts": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(members, ["name", "offset", "size"])),
    }
    known = [columns.get(field.name, pa.nulls(rows)).cast(field.type) for field in INDEX]
    scores = [pa.array(rng.gamma(1.5, scale, rows).astype(np.float32)) for scale in SCORES.values()]
    return pa.table([*known, *scores], names=[*INDEX.names, *(f"score.{name}" for name in SCORES)])


def main(folder: str, rows: int, num_files: int) -> None:
    target = Path(folder) / "shards"
    if not target.exists():
        target.mkdir(parents=True)
        facts = {b"worldreel.format": str(FORMAT).encode(), b"worldreel.tar_sha256": b"", b"worldreel.tar_bytes": b"0"}
        rng, each = np.random.default_rng(1), rows // num_files
        for number in range(num_files):
            table = index(each, number * each, rng).replace_schema_metadata(facts)
            parquet.write_table(table, target / f"x-{number:06d}.parquet", compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    summary = select.curate(folder, CurateRecipe())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = (Path(folder) / "selection.parquet").stat().st_size
    print(
        f"{summary.found} rows in {num_files} files, {summary.kept} kept, {summary.failed_by['duplicates']} look-alikes"
    )
    print(f"{time.perf_counter() - begin:.0f} s, {time.process_time() - cpu:.0f} CPU s; peak {peak / 2**20:.2f} GiB")
    print(f"(made or found the index within {before / 2**20:.2f} GiB; selection of {size / 2**20:.0f} MiB)")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100)
