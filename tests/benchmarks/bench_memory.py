"""Whether memory stays flat over a long run: resident bytes of the trainer over 1,000 steps of a very small model.

Run: python tests/benchmarks/bench_memory.py --steps 1000

Generator's stage, 9 frames of 32 x 48, one rank, samples decoded here, checkpoints and validation on the way, as in a real run. The
first fifth, in which allocators and caches fill, is not judged: growth is the slope after it, times a million steps.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[1] / "train"),
]

import corpus  # noqa: E402
import torch  # noqa: E402

from train import loop  # noqa: E402
from train.log import read  # noqa: E402
from train.recipe import Keeping, Logging, Parallel, Phase, Reading, TrainRecipe  # noqa: E402
from train.size import Size  # noqa: E402
from train.stages import Generator  # noqa: E402


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--steps", type=int, default=1000)
    steps = asked.parse_args().steps
    torch.set_num_threads(1)
    recipe = TrainRecipe(
        batch=1,
        sizes=(Size(frames=9, height=32, width=48),),
        splits=("train", "validation"),
        phases=(Phase(stage=Generator(), steps=steps),),
        reading=Reading(workers=0, threads=1, ahead=1),
        parallel=Parallel(recompute="none"),
        checkpoints=Keeping(every=max(1, steps // 10)),
        logging=Logging(every=max(1, steps // 100), validate_every=max(1, steps // 5), num_validation=2, bar=False),
        preflight=False,
    )
    with tempfile.TemporaryDirectory() as name:
        root = corpus.write(Path(name) / "root", frames=9, height=32, width=48)
        started = time.process_time()
        loop.train(recipe, str(root), f"{name}/run")
        records = [r for r in read(Path(name) / "run" / "metrics.jsonl") if "memory_gib" in r]
    step, mib = (np.array([r[key] for r in records], float) for key in ("step", "memory_gib"))
    mib *= 1024
    late = step > steps / 5
    slope = np.polyfit(step[late], mib[late], 1)[0]
    print(f"{steps} steps in {time.process_time() - started:.0f} CPU seconds")
    for share in (0.02, 0.1, 0.2, 0.5, 1.0):
        row = int(np.argmin(np.abs(step - share * steps)))
        print(f"  step {int(step[row]):6d}: {mib[row]:8.1f} MiB")
    print(
        f"after the first fifth: {np.ptp(mib[late]):.1f} MiB between least and most, {1000 * slope:+.2f} MiB in 1,000 steps"
    )


if __name__ == "__main__":
    main()
