"""The paper's ablation for so many minutes of one GPU: makes clips with truth, measures how fast steps are, and fits their number.

    python tests/benchmarks/bench_ablation.py WORK RESULT --minutes 5 --more PACKED

WORK gets the clips and the runs, RESULT a few files to look at, which grow as arms end. Clips are closed-form rooms; `--more` is a
folder with shards of others, say of simulated scenes, which are mixed in. Steps of the three stages keep the recipe's ratio. Every
arm has the same number of steps of a stage.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import rooms

from shared.knobs import dump
from train.recipe import TrainRecipe

ARMS = "base_finetuned,without_geometry_latent,without_joint,frozen_backbone,full"
SIDE_BY_SIDE = 6
"""The arms that need no other one first, of two seeds."""
TRIED = (70, 40, 30)
"""Steps of each stage that are timed; the first half warms up, and decodes all clips."""
STARTING_S, MEASURING_S = 45.0, 60.0
"""Of two waves of processes; and of what is measured of each wave's last arm."""


def cli(*words: str, log: Path | None = None) -> int:
    """`worldreel WORDS` in a process of its own, one thread."""
    command = [sys.executable, "-m", "pipelines.cli", *words]
    with log.open("w") if log else open(os.devnull, "w") as out:
        return subprocess.run(
            command, stdout=out if log else None, stderr=subprocess.STDOUT if log else None
        ).returncode


def with_steps(recipe: TrainRecipe, steps: Sequence[int], path: Path) -> list[str]:
    """The words that name the recipe with so many steps of its stages; nothing is tried before the first one."""
    phases = [phase.changed(steps=number) for phase, number in zip(recipe.phases, steps)]
    path.write_text(dump(recipe.changed(phases=phases, preflight=False)))
    return ["--recipe", str(path)]


def seconds_a_sample(work: Path, data: Path, recipe: TrainRecipe, at_once: int) -> list[float]:
    """Of each stage, while `at_once` processes do the same."""
    runs = [work / f"timing-{number}" for number in range(at_once)]
    words = [*with_steps(recipe, TRIED, work / "timing.yaml"), "--set", "logging.every=5"]
    threads = [
        threading.Thread(
            target=cli, args=("train", str(data), str(run), *words), kwargs={"log": work / f"{run.name}.log"}
        )
        for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = []
    for stage in ("generator", "decoder", "joint"):
        rates = []
        for run in runs:
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            of_stage = [record["samples_per_second"] for record in records if record["phase"] == stage]
            rates += of_stage[len(of_stage) // 2 :]
        found.append(1 / (sum(rates) / len(rates)))
        print(f"{stage}: {found[-1] * 1000:.1f} ms a sample, {at_once} runs side by side", flush=True)
    for run in runs:
        shutil.rmtree(run)
    return found


def gather(runs: Path, result: Path, *, last: bool = False) -> None:
    """What is worth a look, as far as it is there; whole files only."""
    result.mkdir(parents=True, exist_ok=True)
    wanted = {"ablation.md": "ablation.md", "ablation.json": "ablation.json", "ablation.png": "ablation.png"}
    wanted |= {f"{arm}-0/maps.png": f"maps-{arm}.png" for arm in ("without_geometry_latent", "without_joint", "full")}
    wanted |= {"full-0/loss.png": "loss-full.png"}
    for source, name in wanted.items():
        if (runs / source).exists():
            shutil.copy(runs / source, result / f".{name}")
            (result / f".{name}").rename(result / name)
    if last and (result / "ablation.md").exists():
        print((result / "ablation.md").read_text())


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("work", type=Path)
    parse.add_argument("result", type=Path)
    parse.add_argument(
        "--minutes", type=float, default=5.0, help="of wall time, for everything after the clips are made"
    )
    parse.add_argument("--recipe", default="medium")
    parse.add_argument("--seeds", default="0,1")
    parse.add_argument("--arms", default=ARMS)
    parse.add_argument("--rooms", type=int, default=32, help="seeds; each gives a room of every kind")
    parse.add_argument("--more", default="", help="a folder with shards of other clips")
    parse.add_argument("--clips", type=int, default=16, help="held-out clips to measure on")
    parse.add_argument("--steps", default="", help="of the three stages, with commas: nothing is timed")
    parse.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parse.add_argument("--at-once", type=int, default=SIDE_BY_SIDE)
    parse.add_argument("--set", action="append", default=[], help="as of `worldreel train`")
    asked = parse.parse_args()
    from pipelines import recipes

    begun = time.monotonic()
    asked.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1"}
    recipe, data = recipes.train_recipe(asked.recipe, asked.set), asked.work / "clips"
    rooms.make(data, recipe.sizes[0], asked.rooms, more=asked.more, processes=asked.processes)
    print(f"clips after {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    steps = [int(number) for number in asked.steps.split(",")] if asked.steps else []
    if not steps:
        each = seconds_a_sample(asked.work, data, recipe, asked.at_once)
        whole = sum(phase.steps * recipe.batch * seconds for phase, seconds in zip(recipe.phases, each))
        left = 60 * asked.minutes - (time.monotonic() - begun) - STARTING_S - MEASURING_S
        steps = [max(10, round(phase.steps * left / whole)) for phase in recipe.phases]
    print(f"timed after {time.monotonic() - begun:.0f} s; steps {steps}", flush=True)
    words = ["--arms", asked.arms, "--seeds", asked.seeds, "--clips", str(asked.clips), "--at-once", str(asked.at_once)]
    words += with_steps(recipe, steps, asked.work / "recipe.yaml")
    runs = asked.work / "runs"
    ablating = threading.Thread(
        target=cli, args=("ablate", str(data), str(runs), *words), kwargs={"log": asked.work / "ablate.log"}
    )
    ablating.start()
    while ablating.is_alive():
        ablating.join(5)
        gather(runs, asked.result)
    gather(runs, asked.result, last=True)
    print((asked.work / "ablate.log").read_text()[-2000:])
    print(f"all after {time.monotonic() - begun:.0f} s without the clips")


if __name__ == "__main__":
    main()
