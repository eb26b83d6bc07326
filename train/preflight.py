"""What is tried before a long run begins, so that it does not fail in its third hour.

A sample of every source, the memory, a step of every phase, and a checkpoint written and read.
"""

import logging
import shutil
from pathlib import Path

import torch
from torch import nn

from train import flops, parallel
from train.checkpoint import Checkpoints
from train.models.parts import Models
from train.noise import Noise
from train.parallel import World
from train.reader import read
from train.recipe import TrainRecipe
from train.step import thaw
from train.stream import Stream

log = logging.getLogger(__name__)

TRIES = 3
"""Clips of a source that may be unreadable before the source is."""
KEPT = {"full": 1, "selective": 3, "none": 25}
"""Numbers a block keeps for each of a token's channels: its input; and what attention and the perceptron give; or everything."""


def check_data(recipe: TrainRecipe, root: str, stream: Stream, world: World) -> None:
    """Decodes one sample of every data set at every size. Raises ValueError for a source that gives none."""
    parts = frozenset[str]().union(*(phase.stage.parts for phase in recipe.phases))
    for dataset, size in stream.sources()[world.rank :: world.size]:
        for number in range(TRIES):
            failures = read(stream, root, parts, recipe.reading, [stream.when(dataset, size, number)]).failures
            if not failures:
                break
        else:
            raise ValueError(f"no clip of {dataset} at {size} can be read: {failures[0].reason}")


def check_memory(recipe: TrainRecipe, models: Models, world: World) -> None:
    """Compares what a step takes with the device. Raises ValueError if it cannot fit."""
    if world.device.type != "cuda":
        return
    needs = needed_bytes(recipe, models, world)
    has = torch.cuda.get_device_properties(world.device).total_memory
    log.info("event=memory needs_gib=%.1f has_gib=%.1f", needs / 2**30, has / 2**30)
    if needs > has:
        raise ValueError(
            f"weights, gradients, optimizer and activations take {needs / 2**30:.0f} GiB a device, which has {has / 2**30:.0f}: "
            "use more ranks with parallel.mode=fsdp, model.lora_rank, parallel.recompute=full or parallel.sequence"
        )


def needed_bytes(recipe: TrainRecipe, models: Models, world: World) -> float:
    """Of a device, at the worse end of the backward pass: all activations and no gradient, or all gradients and no activation."""
    shards = 1 if recipe.parallel.mode == "ddp" else world.size
    state = state_bytes(recipe, models)
    gradients = 4.0 * _most_trained(recipe, models)
    return max(state / shards, (state - gradients) / shards + activation_bytes(recipe, models))


def activation_bytes(recipe: TrainRecipe, models: Models) -> float:
    """What the transformer's blocks keep for the backward pass, of a rank's micro-batch at the largest size, in half precision."""
    if not any("dit" in phase.stage.trainable(models) for phase in recipe.phases):
        return 0.0
    shape = flops.transformer(models)
    tokens = max(shape.tokens(size) for size in recipe.sizes) * recipe.parallel.micro_batch / recipe.parallel.sequence
    return 2.0 * KEPT[recipe.parallel.recompute] * shape.layers * shape.width * tokens


def state_bytes(recipe: TrainRecipe, models: Models) -> float:
    """Of the largest phase: float32 weights, and gradient and two moments of what is trained."""
    weights = sum(p.numel() for module in (models.dit, models.dpt, models.vae) for p in module.parameters())
    trained = _most_trained(recipe, models)
    averages = weights if recipe.adam.ema_decay is not None else 0
    return 4.0 * (weights + 3 * trained + averages)


def _most_trained(recipe: TrainRecipe, models: Models) -> int:
    return max(sum(p.numel() for p in thaw(phase, models, {})) for phase in recipe.phases)


def check_steps(
    recipe: TrainRecipe,
    root: str,
    stream: Stream,
    world: World,
    models: Models,
    learned: dict[str, nn.Module],
    folder: Path,
) -> None:
    """Loss and gradient of every phase on the first samples, and a checkpoint saved and restored; nothing is changed by it.

    Raises ValueError for a loss or gradient that is not finite, and for a checkpoint that does not come back as it was.
    """
    positions = stream.positions(0, world.data_rank, world.data_size)[: recipe.parallel.micro_batch]
    for phase in recipe.phases:
        parameters = thaw(phase, models, learned)
        loaded = read(stream, root, phase.stage.parts, recipe.reading, positions)
        with parallel.precision(recipe.parallel, world.device):
            noise = Noise(seed=recipe.seed, positions=loaded.positions)
            losses = phase.stage.loss(models, loaded.batch.to(world.device), noise)
        losses["total"].backward()
        norm = float(parallel.clip(parameters, recipe.adam.max_norm))
        for module in learned.values():
            module.zero_grad(set_to_none=True)
        if norm != norm or norm == float("inf"):
            raise ValueError(f"{phase.stage.kind}: the gradient of {', '.join(loaded.batch.ids)} is not finite")
    _check_checkpoint(world, learned, folder / "preflight")


def _check_checkpoint(world: World, learned: dict[str, nn.Module], folder: Path) -> None:
    before = {name: p.detach().clone() for name, p in nn.ModuleDict(learned).named_parameters()}
    trial = torch.optim.AdamW([p for module in learned.values() for p in module.parameters()], lr=0.0)
    checkpoints = Checkpoints(folder, world)
    checkpoints.save(learned, trial, {}, {"step": 0}, wait=True)
    found = checkpoints.latest()
    assert found is not None
    with torch.no_grad():
        for module in learned.values():
            for parameter in module.parameters():
                parameter.zero_()
    checkpoints.restore(found[0], learned, None, {})
    for name, parameter in nn.ModuleDict(learned).named_parameters():
        if not torch.equal(parallel.local(parameter), parallel.local(before[name])):
            raise ValueError(f"{folder}: {name} did not come back from a checkpoint as it was saved")
    world.wait()
    if world.is_first:
        shutil.rmtree(folder)
