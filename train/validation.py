"""Losses on clips that are never trained on, at fixed times and noise, so that two runs and two steps can be compared."""

from dataclasses import replace

import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from train import parallel
from train.log import Sums
from train.models.parts import Models
from train.noise import Noise
from train.parallel import World
from train.reader import Samples, Wanted
from train.recipe import Phase, TrainRecipe
from train.stream import Stream

NUM_TIMES = 9
"""Samples are noised to the middles of so many equal parts of the diffusion's time, in turn."""


class FixedTimes(Noise):
    """Noise of its own for each position, as in training, but the time goes round with the position."""

    def integers(self, purpose: str, high: int, shape: tuple[int, ...], like: Tensor) -> Int64[Tensor, "B ..."]:
        if purpose != "time":
            return super().integers(purpose, high, shape, like)
        times = [(2 * (position % NUM_TIMES) + 1) * high // (2 * NUM_TIMES) for position in self.positions]
        return torch.tensor(times, device=like.device)


class Validation:
    """The validation split of a run's selection; without one, no losses."""

    def __init__(self, recipe: TrainRecipe, root: str, selection: pa.Table, models: Models, world: World) -> None:
        self.recipe, self.root, self.models, self.world = recipe, root, models, world
        try:
            self.stream = Stream(selection, seed=0, batch=1, sizes=recipe.sizes, splits=("validation",))
        except ValueError:
            self.stream = None

    def __call__(self, phase: Phase) -> dict[str, float]:
        """Weighted means of the phase's losses. All ranks do the same number of forward passes, or some would wait for ever."""
        if self.stream is None:
            return {}
        rounds = -(-self.recipe.logging.num_validation // self.world.data_size)
        steps = rounds * self.world.data_size
        samples = Samples(
            self.stream,
            self.root,
            Wanted.of([phase.stage], self.stream),
            self.recipe.reading,
            first_step=0,
            last_step=steps,
            micro_batch=1,
        )
        sums = Sums()
        for index in range(self.world.data_rank, steps, self.world.data_size):
            self._add(sums, samples, phase, index)
        mine = sums.take()
        found = dict(zip(mine, self.world.sum(list(mine.values()))))
        weight = found.pop("weight")
        return {f"validation.{name}": value / weight for name, value in found.items() if weight > 0}

    @torch.no_grad()
    def _add(self, sums: Sums, samples: Samples, phase: Phase, index: int) -> None:
        loaded = samples[index]
        counts = float(index < self.recipe.logging.num_validation)  # the last round may only keep the ranks together
        batch = replace(loaded.batch, weight=loaded.batch.weight * counts).to(self.world.device)
        with parallel.precision(self.recipe.parallel, self.world.device):
            one = torch.ones((), device=self.world.device)
            losses = phase.stage.loss(self.models, batch, FixedTimes(seed=0, positions=loaded.positions), one)
        sums.add(losses | {"weight": batch.weight.sum()})
