"""Randomness that belongs to a sample, not to a process: every draw is a pure function of (seed, position, purpose).

`position` is the sample's place in the training stream. So a run of one rank and a run of sixteen draw the same numbers, and
resuming needs no saved generator state. Draws are made on the CPU, whose generator is the same everywhere, then moved.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.sample import sent


def generator(seed: int, position: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each (seed, position, purpose)."""
    key = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The draws of one batch: row b belongs to the sample at `positions[b]`, whatever its neighbors are."""

    seed: int
    positions: tuple[int, ...]

    def normal(self, purpose: str, shape: tuple[int, ...], like: Tensor) -> Float[Tensor, "B ..."]:
        """Standard normal float32 numbers of `shape` for each sample, on the device of `like`."""
        return sent(torch.stack([torch.randn(shape, generator=one) for one in self._generators(purpose)]), like.device)

    def uniform(self, purpose: str, like: Tensor) -> Float[Tensor, " B"]:
        """One number in [0, 1) for each sample."""
        return sent(torch.stack([torch.rand((), generator=one) for one in self._generators(purpose)]), like.device)

    def integers(self, purpose: str, high: int, shape: tuple[int, ...], like: Tensor) -> Int64[Tensor, "B ..."]:
        """Whole numbers in [0, high) of `shape` for each sample."""
        return sent(
            torch.stack([torch.randint(high, shape, generator=one) for one in self._generators(purpose)]), like.device
        )

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [generator(self.seed, position, purpose) for position in self.positions]
