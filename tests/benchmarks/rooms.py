"""A folder of closed-form rooms with exact truth, curated without checks, ready for `worldreel train` and `worldreel ablate`.

    python tests/benchmarks/rooms.py OUT --recipe small --seeds 24 --kinds lateral,orbit,dolly,handheld,many_moving,follow

A shard a seed, with a room of every kind at the recipe's size; one in eight is held out as the test split. Labels are true, and no
check is calibrated for pictures as small as these, so all are kept.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import scene

from shared.knobs import dump
from train.size import Size


def write(folder: Path, size: Size, kinds: Sequence[str], seed: int) -> None:
    """One shard: a room of every kind."""
    from shared import shards

    items = []
    for kind in kinds:
        clip = scene.clip(
            kind, frames=size.frames, height=size.height, width=size.width, focal=0.94 * size.width, seed=seed
        )
        clip = replace(clip, id=f"{kind}-{seed}".replace("_", "-"), key_flow=None)
        items.append((clip.id, shards.encode(clip, shards.Store()), shards.index_row(clip, dataset="scene")))
    shards.write_shard(str(folder / "shards"), f"scene-{seed:06d}", items)


def make(
    out: Path, size: Size, seeds: int, *, kinds: Sequence[str] = scene.KINDS, more: str = "", processes: int = 1
) -> None:
    """All clips in one folder, and those of the folder `more`; one in eight of each source's held out."""
    if (out / "selection.parquet").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    (out / "shards").mkdir(parents=True)
    if more:
        shutil.copytree(Path(more) / "shards", out / "shards", dirs_exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(write, out, size, kinds), range(seeds)))
    _unchecked(out / "curate.yaml")
    command = [sys.executable, "-m", "pipelines.cli", "curate", str(out), "--recipe", str(out / "curate.yaml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _unchecked(path: Path) -> None:
    """A selection of everything."""
    from curate.recipe import CurateRecipe

    checks = dict.fromkeys(CurateRecipe().checks.model_dump())
    splits, report = {"test": 0.12, "validation": 0.0}, {"pictures": 0}
    recipe = CurateRecipe.model_validate({"checks": checks, "duplicates": None, "splits": splits, "report": report})
    path.write_text(dump(recipe))


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("out", type=Path)
    parse.add_argument("--recipe", default="small", help="of `worldreel train`, whose first size the clips get")
    parse.add_argument("--seeds", type=int, default=24)
    parse.add_argument("--kinds", default=",".join(scene.KINDS))
    parse.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parse.parse_args()
    from pipelines import recipes

    size = recipes.train_recipe(asked.recipe, []).sizes[0]
    make(asked.out, size, asked.seeds, kinds=asked.kinds.split(","), processes=asked.processes)


if __name__ == "__main__":
    main()
