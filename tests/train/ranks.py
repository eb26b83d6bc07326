"""Runs on several ranks as torchrun starts them: one process a rank, told apart by environment variables.

python ranks.py ROOT FOLDER NAME... trains the named recipes one after the other, each into FOLDER/NAME.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

from train.recipe import Adam, Keeping, Logging, Parallel, Phase, Reading, TrainRecipe
from train.size import Size
from train.stages import Decoder, Generator, Joint

BASE = TrainRecipe(
    seed=3,
    batch=2,
    sizes=(Size(frames=9, height=32, width=48),),
    splits=("train", "validation"),
    phases=tuple(Phase(stage=stage, steps=1, learning_rate=1e-2) for stage in (Generator(), Decoder(), Joint())),
    adam=Adam(warmup_steps=3),
    reading=Reading(workers=0, threads=2, ahead=1),
    parallel=Parallel(recompute="none"),
    checkpoints=Keeping(every=100),
    logging=Logging(every=1, validate_every=0, tensorboard=False, bar=False),
    preflight=False,
)
"""Three steps that change much: a large rate, so that a lost or repeated step shows."""


def recipe(**changes) -> TrainRecipe:
    return TrainRecipe.model_validate(BASE.model_dump() | changes)


ODD = (Size(frames=9, height=48, width=48),)
"""27 video tokens."""


def generator(steps: int, **changes) -> TrainRecipe:
    """The first stage alone, with other knobs."""
    return recipe(phases=(Phase(stage=Generator(), steps=steps, learning_rate=1e-2),), **changes)


RECIPES = {
    "stages": recipe(preflight=True),
    "stages_ddp": recipe(parallel=Parallel(recompute="none", mode="ddp")),
    "two": generator(2),
    "four": generator(4),
    "validated": generator(1, logging=BASE.logging.model_copy(update={"validate_every": 1, "num_validation": 3})),
    "odd": generator(2, sizes=ODD),
    "shared": generator(2, sizes=ODD, parallel=Parallel(recompute="selective", sequence=2)),
    "shared_joint": recipe(preflight=True, parallel=Parallel(recompute="none", sequence=2)),
    "half": generator(1, parallel=Parallel(recompute="selective", precision="bfloat16")),
}


def launch(ranks: int, root: Path, folder: Path, *jobs: str, timeout: float = 300) -> None:
    """`jobs` are NAME or NAME:FOLDER, done in order by every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    command = [sys.executable, __file__, str(root), str(folder), *jobs]
    started = [
        subprocess.Popen(
            command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=timeout)[1] for process in started]
    for rank, process in enumerate(started):
        assert process.returncode == 0, f"rank {rank}: {errors[rank][-3000:]}"


def main(root: str, folder: str, *jobs: str) -> None:
    import torch

    from train import loop, parallel

    torch.set_num_threads(1)
    with parallel.join():  # once: ranks cannot leave and meet again at the same port
        for job in jobs:
            name, _, into = job.partition(":")
            outcome = loop.train(RECIPES[name], root, f"{folder}/{into or name}")
            assert outcome.finished, outcome


if __name__ == "__main__":
    main(*sys.argv[1:])
