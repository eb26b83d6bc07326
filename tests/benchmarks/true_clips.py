"""Write shards of the closed-form scenes with their truth: `python tests/benchmarks/true_clips.py FOLDER [SEEDS] [FIRST]`."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import scene

from shared import shards


def main(folder: str, seeds: int, first: int) -> None:
    store = shards.Store(codec="plain")
    for seed in range(first, first + seeds):
        items = []
        for kind in scene.KINDS:
            clip = scene.clip(kind, frames=25, height=120, width=160, focal=150.0, seed=seed)
            clip = replace(clip, id=f"{kind}-{seed}".replace("_", "-"))
            items.append((clip.id, shards.encode(clip, store), shards.index_row(clip, dataset="scene")))
        shards.write_shard(str(Path(folder) / "shards"), f"scene-{seed:06d}", items)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    main(sys.argv[1], *(numbers + [3, 0][len(numbers) :]))
