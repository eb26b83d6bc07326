"""One optimizer step: gradients of micro-batches summed over time and ranks, normalized once, clipped once, applied once."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from train import parallel
from train.log import Log, Sums
from train.models.parts import Models
from train.noise import Noise
from train.parallel import World
from train.reader import Failure, Loaded
from train.recipe import Phase, TrainRecipe

log = logging.getLogger(__name__)

SPIKE_WINDOW = 64
MIN_NORMS = 16
"""Gradients to have seen before one can be called a spike."""
TIME_RANGES = 4
"""Parts of the diffusion's time in which its loss is told apart."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a step did, the same on every rank."""

    norm: float
    """Of the gradient before clipping."""
    learning_rate: float
    weight: float
    """Of the samples that counted."""
    failures: tuple[Failure, ...]
    stopping: bool
    """Some rank was asked to stop."""
    updated: bool
    """False: the step was left out, as a spike or because no sample could be read."""


@dataclass(kw_only=True)
class Stepper:
    """The steps of one phase."""

    recipe: TrainRecipe
    phase: Phase
    models: Models
    learned: dict[str, nn.Module]
    ema: dict[str, Tensor]
    world: World
    log: Log
    norms: deque[float]
    """Of the last gradients, part of the run's state."""

    def __post_init__(self) -> None:
        self.parameters = thaw(self.phase, self.models, self.learned)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.phase.learning_rate,
            betas=self.recipe.adam.betas,
            weight_decay=self.recipe.adam.weight_decay,
            fused=self.world.device.type == "cuda",
        )
        self.sums = Sums()
        self.waited = 0.0
        """Seconds spent waiting for data."""
        self._seen: list[tuple[dict[str, Tensor], tuple[str, ...]]] = []
        """Losses of the step's micro-batches, and whose they are."""

    def __call__(self, batches: Iterator[Loaded], step: int, phase_step: int, stop: threading.Event) -> Done:
        """Does step `step` of the run, `phase_step` of the phase (both counted from 0). `stop`: this rank is asked to end."""
        micro_batches = self.recipe.batch // self.world.data_size // self.recipe.parallel.micro_batch
        weight, failures, ids = 0.0, [], []
        self._seen.clear()
        for micro in range(micro_batches):
            loaded = self._next(batches)
            with parallel.accumulating(self.learned.values(), last=micro == micro_batches - 1):
                self._backward(loaded)
            weight += float(loaded.batch.weight.sum())
            failures.extend(loaded.failures)
            ids.extend(loaded.batch.ids)
        weight, num_failures, stops = self.world.sum([weight, float(len(failures)), float(stop.is_set())])
        weight /= self.world.sequence
        if num_failures:
            failures = self._of_all(failures)
        rate = self._learning_rate(phase_step)
        norm, updated = self._update(step, weight, rate, ids)
        return Done(
            norm=norm,
            learning_rate=rate,
            weight=weight,
            failures=tuple(failures),
            stopping=stops > 0,
            updated=updated,
        )

    def _next(self, batches: Iterator[Loaded]) -> Loaded:
        started = time.perf_counter()
        loaded = next(batches)
        self.waited += time.perf_counter() - started
        return loaded

    def _backward(self, loaded: Loaded) -> None:
        """Adds the gradient of Σ weight · loss over the mean share of a rank: ranks are averaged, so all is over the batch."""
        batch = loaded.batch.to(self.world.device)
        noise = Noise(seed=self.recipe.seed, positions=loaded.positions)
        share = torch.full((), self.recipe.batch / self.world.data_size, device=self.world.device)
        with parallel.precision(self.recipe.parallel, self.world.device):
            losses = self.phase.stage.loss(self.models, batch, noise, share)
        losses["total"].backward()
        self._seen.append(({name: loss.detach() for name, loss in losses.items()}, batch.ids))
        self.sums.add({f"loss.{name}": loss * share for name, loss in losses.items()})
        self.sums.add({"weight": batch.weight.sum()})
        if len(loaded.positions) == 1 and "diffusion_rgb" in losses:
            self.sums.add(_by_time(losses["diffusion_rgb"] * share, batch.weight[0], noise, len(self.models.alpha_bar)))

    def _update(self, step: int, weight: float, rate: float, ids: list[str]) -> tuple[float, bool]:
        """Clips and applies the gradient, unless it is a spike or nothing could be read. Raises ValueError if it is not finite."""
        if weight and weight != self.recipe.batch:  # unreadable samples leave a smaller sum to divide by
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.recipe.batch / weight)
        norm = float(parallel.clip(self.parameters, self.recipe.adam.max_norm))
        if norm != norm or norm == float("inf"):
            raise ValueError(f"step {step}: {self._not_finite(step, ids)}")
        updated = weight > 0 and not self._is_spike(step, norm, ids)
        if updated:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._average()
            self.norms.append(norm)
        for module in self.learned.values():
            module.zero_grad(set_to_none=True)
        return norm, updated

    def _not_finite(self, step: int, ids: list[str]) -> str:
        """Which losses of which samples, if it came from a loss; else whose gradients were summed."""
        bad = [(losses, names) for losses, names in self._seen if not torch.isfinite(losses["total"])]
        terms = [name for losses, _ in bad for name, loss in losses.items() if not torch.isfinite(loss)]
        terms, samples = sorted(set(self._of_all(terms))), self._of_all([name for _, names in bad for name in names])
        everyone = samples or self._of_all(ids)
        self.log.event("gradient_not_finite", step=step, samples=everyone, losses=terms)
        if samples:
            return f"{', '.join(terms)} not finite in {', '.join(samples)}"
        return f"the gradient is not finite; its samples are {', '.join(everyone)}"

    def _is_spike(self, step: int, norm: float, ids: list[str]) -> bool:
        factor = self.recipe.adam.skip_spikes
        if factor is None or len(self.norms) < MIN_NORMS or norm <= factor * median(self.norms):
            return False
        everyone = self._of_all(ids)
        self.log.event("spike_skipped", step=step, norm=norm, median=median(self.norms), samples=everyone)
        return True

    def _of_all(self, mine: list[Any]) -> list[Any]:
        """Of all ranks, by rank; of those that share their samples, once."""
        return [one for rank in self.world.gather(mine)[:: self.world.sequence] for one in rank]

    def _average(self) -> None:
        if self.recipe.adam.ema_decay is not None:
            trained = {id(parameter) for parameter in self.parameters}
            for name, parameter in nn.ModuleDict(self.learned).named_parameters():
                if id(parameter) in trained:
                    self.ema[name].lerp_(parameter.detach(), 1 - self.recipe.adam.ema_decay)

    def _learning_rate(self, phase_step: int) -> float:
        warmup = self.recipe.adam.warmup_steps
        return self.phase.learning_rate * (min(1.0, (phase_step + 1) / warmup) if warmup else 1.0)

    def losses(self) -> dict[str, float]:
        """Weighted mean of every term over ranks and steps since the last time. Every rank must call it."""
        mine = self.sums.take()
        names = sorted(mine)
        found = dict(zip(names, self.world.sum([mine[name] for name in names])))
        weight = found.pop("weight", 0.0)
        weights = {name.removesuffix(".weight"): w for name, w in found.items() if name.endswith(".weight")}
        means = {name: value for name, value in found.items() if not name.endswith(".weight")}
        divisors = {name: weights.get(name, weight) for name in means}
        return {name: value / divisors[name] for name, value in means.items() if divisors[name] > 0}


def thaw(phase: Phase, models: Models, learned: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """The weights that a phase moves; all others are frozen, and their modules set to evaluation."""
    for module in learned.values():
        module.requires_grad_(False).eval()
    return [parameter for module in phase.stage.trainable(models).values() for parameter in _thawed(module)]


def _thawed(module: nn.Module) -> list[nn.Parameter]:
    module.requires_grad_(True).train()
    return list(module.parameters())


def _by_time(loss: Tensor, weight: Tensor, noise: Noise, num_times: int) -> dict[str, Tensor]:
    """The sample's loss under the part of the diffusion's time it fell in; the same draw as the stage's own."""
    time_of_sample = noise.integers("time", num_times, (), loss)[0]
    part = time_of_sample * TIME_RANGES // num_times
    found: dict[str, Tensor] = {}
    for index in range(TIME_RANGES):
        name = f"loss.diffusion_rgb.t{index * num_times // TIME_RANGES}"
        found[name] = loss * (part == index)
        found[f"{name}.weight"] = weight * (part == index)
    return found
