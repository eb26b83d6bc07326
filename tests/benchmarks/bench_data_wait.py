"""Share of the time a GPU would wait for data: one decoding worker behind a step that sleeps.

Run: python tests/benchmarks/bench_data_wait.py

Clips of 49 frames at 480x720 with every label, as `annotate` writes them; the step takes 2.5 s, which is what one such sample takes
on a large GPU. The first steps, in which the worker starts, are not counted. Each stage decodes everything, and then reads its
labels beside latents that are kept (numbers at random in their place: what counts is their size). Core-seconds of a sample, and
those that the trainer itself spends on taking it over, mean something on a machine that does other work as well; the wait does not.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import pyarrow as pa  # noqa: E402
import scene  # noqa: E402

from shared import shards  # noqa: E402
from shared.clip import AnnotatedClip, Flow  # noqa: E402
from shared.index import SELECTION  # noqa: E402
from shared.members import Store  # noqa: E402
from train import reader  # noqa: E402
from train.encoded import Encoded  # noqa: E402
from train.latent_cache import LatentCache, LatentWriter  # noqa: E402
from train.recipe import Reading  # noqa: E402
from train.sample import Batch  # noqa: E402
from train.size import Size  # noqa: E402
from train.stages import Generator, Joint  # noqa: E402
from train.stream import Stream  # noqa: E402

WARM_UP = 2


def large(clip: AnnotatedClip, times: int, dice: np.random.Generator) -> AnnotatedClip:
    """The clip with every pixel repeated, and noise as of predictions, so that it costs what a real one costs."""

    def grown(array: np.ndarray) -> np.ndarray:
        return array.repeat(times, axis=1).repeat(times, axis=2)

    def flow(part: Flow | None) -> Flow | None:
        if part is None:
            return None
        sides = {name: grown(getattr(part, name)) * times for name in ("forward", "backward")}
        noisy = {name: (side + dice.normal(0, 0.05, side.shape)).astype(np.float32) for name, side in sides.items()}
        return replace(part, **noisy)

    assert clip.depth is not None
    assert clip.cameras is not None
    assert clip.motion is not None
    z = grown(clip.depth.z)
    motion = {
        name: grown(value)
        for name, value in vars(clip.motion).items()
        if isinstance(value, np.ndarray) and value.ndim >= 3
    }
    return replace(
        clip,
        rgb=grown(clip.rgb),
        depth=replace(
            clip.depth, z=(z * (1 + dice.normal(0, 0.002, z.shape))).astype(np.float32), valid=grown(clip.depth.valid)
        ),
        cameras=replace(clip.cameras, intrinsics=clip.cameras.intrinsics * times),
        flow=flow(clip.flow),
        key_flow=flow(clip.key_flow),
        motion=replace(clip.motion, **motion),
    )


def write(root: Path, size: Size, num_clips: int) -> pa.Table:
    """One clip under several names: its cost is what counts."""
    times = 6
    clip = large(
        scene.clip(
            "follow", frames=size.frames, height=size.height // times, width=size.width // times, focal=size.width / 7
        ),
        times,
        np.random.default_rng(0),
    )
    rows = []
    for number in range(num_clips):
        named = clip.with_(id=f"clip{number}")
        name = f"x-{number:06d}"
        shards.write_shard(root / "shards", name, [(named.id, shards.encode(named, Store()), shards.index_row(named))])
    for row in shards.read_index(root / "shards").to_pylist():
        defaults: dict[str, Any] = {"keep": True, "weight": 1.0, "split": "train", "shard": f"shards/{row['shard']}"}
        rows.append({name: row.get(name) for name in SELECTION.names} | defaults)
    return pa.Table.from_pylist(rows, schema=SELECTION)


def keep_latents(samples: reader.Samples) -> None:
    """As the trainer would have kept them for every clip."""
    assert samples._fetcher.latents is not None
    for item in range(len(samples)):
        batch = samples[item].batch
        if batch.cache_names:
            frames, height, width = batch.rgb.shape[1:4]
            shape = (1, (frames - 1) // 4 + 1, 16, height // 8, width // 8)
            names = ("rgb_mean", "rgb_std", "geometry_mean", "geometry_std")
            each = {name: torch.randn(shape).bfloat16() for name in names}
            numbers = {name: torch.ones(1) for name in ("depth_min", "depth_max", "flow_max")}
            writer = LatentWriter(samples._fetcher.latents, 100.0)
            writer.put(batch, Encoded(**each, **numbers))
            writer.finish()


def waits(samples: reader.Samples, step_seconds: float) -> Iterable[tuple[float, float]]:
    """Seconds each step waited, as the trainer counts them, and its core-seconds; a batch is let go while the next step runs."""
    loaded, held = reader.batches(samples), None
    for _ in range(len(samples)):
        started, cpu = time.perf_counter(), time.thread_time()
        fresh = next(loaded)
        yield time.perf_counter() - started, time.thread_time() - cpu
        held = fresh
        time.sleep(step_seconds)
    del held


def main() -> None:
    knobs = argparse.ArgumentParser()
    knobs.add_argument("--step-seconds", type=float, default=2.5)
    knobs.add_argument("--steps", type=int, default=12)
    knobs.add_argument("--workers", type=int, default=1)
    knobs.add_argument("--clips", type=int, default=3)
    asked = knobs.parse_args()
    size = Size()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        table = write(root, size, asked.clips)
        print(f"{asked.clips} clips of {size}, {sum(p['size'] for p in table['parts'][0].as_py()) / 1e6:.1f} MB each")
        stream = Stream(table, batch=1, sizes=[size])
        cache = LatentCache(folder=root / "latents", identity="bench")
        for stage, latents in ((Generator(), None), (Joint(), None), (Generator(), cache), (Joint(), cache)):
            samples = reader.Samples(
                stream,
                name,
                reader.Wanted.of([stage], stream),
                Reading(workers=asked.workers),
                first_step=0,
                last_step=asked.steps + WARM_UP,
                micro_batch=1,
                latents=latents,
            )
            if latents is not None:
                keep_latents(samples)
            found = f"{stage.kind}{', latents kept' if latents else ''}"
            samples[0]
            cpu = time.process_time()
            for item in range(1, 4):
                batch = samples[item].batch
            cost = (time.process_time() - cpu) / 3
            size_mb = sum(t.untyped_storage().nbytes() for t in tensors(batch)) / 1e6
            print(
                f"{found}: a sample takes {cost:.3f} core-seconds to read and decode, {size_mb:.0f} MB to hand over",
                flush=True,
            )
            samples._under_way.clear()
            samples._pool = None  # threads do not travel to workers
            waited = list(waits(samples, asked.step_seconds))[WARM_UP:]
            share = sum(wall for wall, _ in waited) / (
                sum(wall for wall, _ in waited) + asked.steps * asked.step_seconds
            )
            own = sum(cpu for _, cpu in waited) / asked.steps
            print(
                f"{found}: data wait {100 * share:.2f} % of the time, {asked.workers} worker(s); "
                f"of it {100 * own / asked.step_seconds:.3f} % is the trainer's own work",
                flush=True,
            )


def tensors(batch: Batch) -> list[torch.Tensor]:
    found = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    return found + (list(vars(batch.encoded).values()) if batch.encoded else [])


if __name__ == "__main__":
    main()
