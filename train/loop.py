"""A training run, in the order in which things happen.

Its state is its weights, its optimizer and one integer, the step. The step tells the phase, the samples (`Stream`), their noise
(`Noise`) and the learning rate: a resumed run does what an uninterrupted one would have done, on any number of ranks.
"""

import logging
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shared.knobs import dump
from train import export, foreign, latent_cache, models, parallel, preflight, reader, sampling
from train.checkpoint import Checkpoints
from train.flops import Meter
from train.latent_cache import LatentWriter
from train.log import Log
from train.models.parts import Models
from train.parallel import World
from train.recipe import PAPER, TINY, Phase, TrainRecipe
from train.step import SPIKE_WINDOW, Done, Stepper
from train.stream import Stream, read_selection
from train.validation import Validation

__all__ = ["PAPER", "TINY", "Outcome", "TrainRecipe", "train"]

log = logging.getLogger(__name__)

PINNED = ("seed", "batch", "sizes", "mixture", "splits", "model")
"""Knobs that decide what a step means: a run keeps those it began with."""
FREE_FAILURES = 8
"""Unreadable samples that are borne whatever their share."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    """Optimizer steps that are done."""
    finished: bool
    message: str


@dataclass(kw_only=True)
class _Run:
    """What lives as long as one call of `train`."""

    recipe: TrainRecipe
    root: str
    folder: Path
    world: World
    stream: Stream
    models: Models
    learned: dict[str, nn.Module]
    """Modules that some phase trains."""
    ema: dict[str, Tensor]
    checkpoints: Checkpoints
    validation: Validation
    latents: LatentWriter | None
    log: Log
    stop: threading.Event
    """Set by a signal to this process."""
    step: int = 0
    """Optimizer steps that are done."""
    stopping: bool = False
    """Some rank was asked to stop; all ranks agree."""
    num_corrupt: int = 0
    kept: reader.Kept = field(default_factory=dict)
    """Samples that stay in memory, for all phases."""
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))


def train(recipe: TrainRecipe, root: str, run: str, stop: threading.Event | None = None) -> Outcome:
    """Trains on the selection in `root` and leaves everything in `run`; called again, it goes on where it was.

    Alone, or as one of the ranks that torchrun or Ray started. SIGTERM, or `stop` set by another thread, saves and returns at the
    end of the step. Raises ValueError, one sentence, for what cannot work.
    """
    folder = Path(run)
    with parallel.join() as world, _stopping(stop) as stop:
        parallel.check(recipe, world.size)
        world = parallel.sharing(world, recipe.parallel)
        if export.is_finished(folder, recipe.num_steps):
            return Outcome(step=recipe.num_steps, finished=True, message=f"{run} is finished; its model is {run}/model")
        state = _begin(recipe, root, folder, world, stop)
        try:
            return _all_phases(state)
        except ValueError as error:
            state.log.event("failed", step=state.step, reason=str(error))
            raise
        finally:
            if state.latents is not None:
                state.latents.finish()
            state.log.close()


def _begin(recipe: TrainRecipe, root: str, folder: Path, world: World, stop: threading.Event) -> _Run:
    """Everything up to the first step: checks, models on their devices, the checkpoint to go on from."""
    selection = foreign.selection(root) if recipe.foreign else read_selection(root)
    stream = Stream(
        selection,
        seed=recipe.seed,
        batch=recipe.batch,
        sizes=recipe.sizes,
        mixture=recipe.mixture,
        splits=recipe.splits,
    )
    checkpoints = Checkpoints(folder / "checkpoints", world, keep=recipe.checkpoints.keep)
    found = checkpoints.latest()
    if found is not None:
        _check_same(recipe, stream, *found)
    built = models.build(recipe.model)
    if recipe.preflight and found is None:
        preflight.check_data(recipe, root, stream, world)
        preflight.check_memory(recipe, built, world)
    learned = _place(recipe, built, world)
    if recipe.preflight and found is None:
        preflight.check_steps(recipe, root, stream, world, built, learned, folder)
    step = found[1]["step"] if found is not None else 0
    run = _Run(
        recipe=recipe,
        root=root,
        folder=folder,
        world=world,
        stream=stream,
        models=built,
        learned=learned,
        ema=_averages(recipe, learned),
        checkpoints=checkpoints,
        validation=Validation(recipe, root, selection, built, world),
        latents=_latents(recipe, stream, built),
        log=Log(folder, recipe.logging, first_step=step, last_step=recipe.num_steps, writes=world.is_first),
        stop=stop,
        step=step,
    )
    if found is not None:
        checkpoints.restore(found[0], learned, None, run.ema)
        run.norms.extend(found[1]["norms"])
        run.num_corrupt = found[1]["num_corrupt"]
    if world.is_first:
        (folder / "recipe.yaml").write_text(dump(recipe))
    run.log.event("start", step=step, ranks=world.size, selection=stream.hash, num_too_short=stream.num_too_short)
    return run


def _check_same(recipe: TrainRecipe, stream: Stream, path: Path, state: Mapping[str, Any]) -> None:
    """A run goes on under the knobs and the selection it began with, or its step would mean other samples."""
    now = recipe.model_dump(mode="json")
    for name in PINNED:
        if now[name] != state["recipe"][name]:
            raise ValueError(f"{path}: was trained with {name}={state['recipe'][name]}, now it is {now[name]}")
    if stream.hash != state["selection"] and not recipe.allow_other_selection:
        raise ValueError(
            f"{path}: was trained on another selection ({state['selection'][:8]}, now {stream.hash[:8]}); "
            "set allow_other_selection=true, or take another folder"
        )


def _place(recipe: TrainRecipe, built: Models, world: World) -> dict[str, nn.Module]:
    """Puts every part on its device; those that some phase trains are laid over the ranks."""
    names = {name.partition(".")[0] for phase in recipe.phases for name in phase.stage.trainable(built)}
    learned: dict[str, nn.Module] = {name: getattr(built, name) for name in sorted(names)}
    for module in learned.values():
        parallel.place(module, recipe.parallel, world)
    for name in {"vae", "dit", "dpt"} - names:
        parallel.place_frozen(getattr(built, name), recipe.parallel, world)
    if (encoder := getattr(built.text, "encoder", None)) is not None:
        encoder.to(world.device)
    return learned


def _latents(recipe: TrainRecipe, stream: Stream, built: Models) -> LatentWriter | None:
    """The cache of latents, for the VAE as it computes here: in its precision."""
    if not recipe.latent_cache:
        return None
    identity = latent_cache.identity(built.vae, recipe.model.latent.model_dump_json(), repr(stream.gates))
    cache = latent_cache.LatentCache(folder=Path(recipe.latent_cache), identity=identity)
    return LatentWriter(cache, recipe.latent_cache_gb)


def _averages(recipe: TrainRecipe, learned: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    if recipe.adam.ema_decay is None:
        return {}
    named = nn.ModuleDict(dict(learned)).named_parameters()
    return {name: parameter.detach().clone() for name, parameter in named}


def _all_phases(run: _Run) -> Outcome:
    last_step = run.recipe.num_steps
    while run.step < last_step and not run.stopping:
        index, first, last = run.recipe.phase_at(run.step)
        _one_phase(run, run.recipe.phases[index], first, last)
    run.checkpoints.finish()
    if run.step < last_step:
        run.log.event("stopped", step=run.step)
        message = f"stopped at step {run.step} of {last_step} and saved; run the same command again to go on"
        return Outcome(step=run.step, finished=False, message=message)
    path = export.save(run.models, run.learned, run.ema, run.folder, run.step, run.world)
    run.log.event("finished", step=run.step, model=str(path))
    return Outcome(step=run.step, finished=True, message=f"trained {run.step} steps; the model is {path}")


def _one_phase(run: _Run, phase: Phase, first: int, last: int) -> None:
    """From the current step to the phase's last, or until the run is asked to stop. It ends with a checkpoint."""
    stepper = _stepper(run, phase, first)
    trained = {name.partition(".")[0] for name in phase.stage.trainable(run.models)}
    meter = Meter(run.models, trained, run.world.device, run.world.size)
    pin = run.world.device.type == "cuda" and not run.recipe.reading.keep
    batches = reader.batches(_samples(run, phase, last), pin=pin)
    while run.step < last and not run.stopping:
        done = stepper(batches, run.step, run.step - first, run.stop)
        meter.step(run.stream.size(run.step), run.recipe.batch)
        run.step += 1
        run.stopping = done.stopping
        _record_failures(run, done)
        _record(run, phase, stepper, meter, done)
        if run.step % run.recipe.checkpoints.every == 0 or run.step == last or run.stopping:
            _save(run, stepper, wait=run.stopping)
        run.checkpoints.poll()


def _stepper(run: _Run, phase: Phase, first: int) -> Stepper:
    """The steps of a phase; in its middle, with the optimizer as the checkpoint has it."""
    stepper = Stepper(
        recipe=run.recipe,
        phase=phase,
        models=run.models.cached(run.latents),
        learned=run.learned,
        ema=run.ema,
        world=run.world,
        log=run.log,
        norms=run.norms,
    )
    if run.step > first:
        found = run.checkpoints.latest()
        assert found is not None
        run.checkpoints.restore(found[0], run.learned, stepper.optimizer, run.ema)
    return stepper


def _samples(run: _Run, phase: Phase, last: int) -> reader.Samples:
    phases = run.recipe.phases if run.recipe.reading.keep else (phase,)
    return reader.Samples(
        run.stream,
        run.root,
        reader.Wanted.of([one.stage for one in phases], run.stream),
        run.recipe.reading,
        first_step=run.step,
        last_step=last,
        micro_batch=run.recipe.parallel.micro_batch,
        rank=run.world.data_rank,
        world=run.world.data_size,
        device=run.world.device,
        kept=run.kept,
        latents=run.latents and run.latents.cache,
    )


def _record_failures(run: _Run, done: Done) -> None:
    """Every unreadable sample is an event; too many of them end the run."""
    for failure in done.failures:
        run.log.event("corrupt", position=failure.position, clip=failure.clip_id, reason=failure.reason)
    run.num_corrupt += len(done.failures)
    borne = max(FREE_FAILURES, run.recipe.reading.max_corrupt * run.step * run.recipe.batch)
    if run.num_corrupt > borne:
        raise ValueError(
            f"{run.num_corrupt} of {run.step * run.recipe.batch} samples could not be read, more than "
            f"reading.max_corrupt={run.recipe.reading.max_corrupt} allows; the last: {done.failures[-1].reason}"
        )


def _record(run: _Run, phase: Phase, stepper: Stepper, meter: Meter, done: Done) -> None:
    knobs = run.recipe.logging
    if run.step % knobs.every == 0:
        losses = stepper.losses()
        facts = {"grad_norm": done.norm, "learning_rate": done.learning_rate, "num_corrupt": run.num_corrupt}
        meter.waited, stepper.waited = stepper.waited, 0.0
        run.log.metrics(run.step, {"phase": phase.stage.kind} | losses | facts | meter.read())
        run.log.step(run.step, f"{phase.stage.kind} loss {losses.get('loss.total', float('nan')):.4g}")
    if knobs.validate_every and run.step % knobs.validate_every == 0:
        run.log.metrics(run.step, {"phase": phase.stage.kind} | run.validation(phase))
    if knobs.sample_every and run.step % knobs.sample_every == 0:
        path = run.folder / "samples" / f"{run.step:08d}.png"
        sampling.write(run.recipe, run.root, run.stream, run.models, run.world, path)


def _save(run: _Run, stepper: Stepper, *, wait: bool) -> None:
    state = {
        "step": run.step,
        "selection": run.stream.hash,
        "recipe": run.recipe.model_dump(mode="json"),
        "num_corrupt": run.num_corrupt,
        "norms": list(run.norms),
    }
    run.checkpoints.save(run.learned, stepper.optimizer, run.ema, state, wait=wait)


@contextmanager
def _stopping(asked: threading.Event | None) -> Iterator[threading.Event]:
    """An event that SIGTERM sets: the machine is wanted back, and there is time for the step and a checkpoint."""
    asked = asked or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may listen to signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
