"""The trained model, whole, in the folder layout of diffusers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from train import models, parallel
from train.models.parts import Models
from train.parallel import World

MARKER = "training.json"


def is_finished(run: Path, num_steps: int) -> bool:
    """Whether the run has exported its model after so many steps."""
    path = run / "model" / MARKER
    return path.exists() and json.loads(path.read_text())["step"] >= num_steps


def save(
    trained: Models, learned: Mapping[str, nn.Module], ema: Mapping[str, Tensor], run: Path, step: int, world: World
) -> Path:
    """Writes RUN/model, whole or not at all: averaged weights where there are averages. Every rank must call it.

    Shards are gathered on the first rank's CPU, one module after the other, never on a device.
    """
    path, partial = run / "model", run / "model.partial"
    fresh = models.build(trained.knobs) if world.is_first else None
    for name, module in learned.items():
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(module, options=options)
        for key, average in ema.items():
            part, _, inner = key.partition(".")
            if part == name:
                weights[inner] = parallel.whole(average).cpu()
        if fresh is not None:
            getattr(fresh, name).load_state_dict(weights)
    if fresh is not None:
        shutil.rmtree(partial, ignore_errors=True)
        fresh.save(partial)
        (partial / MARKER).write_text(json.dumps({"step": step, "averaged": bool(ema)}))
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    world.wait()
    return path
