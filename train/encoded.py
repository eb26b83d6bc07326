"""What the video VAE made of clips: the form in which latents rest on disk, travel from workers, and reach the stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The posteriors of both videos of a batch, unscaled and in the VAE's own precision, so that keeping them loses nothing."""

    rgb_mean: Float[Tensor, "B F C h w"]
    rgb_std: Float[Tensor, "B F C h w"]
    geometry_mean: Float[Tensor, "B F C h w"]
    geometry_std: Float[Tensor, "B F C h w"]
    depth_min: Float32[Tensor, " B"]
    depth_max: Float32[Tensor, " B"]
    flow_max: Float32[Tensor, " B"]

    def mapped(self, act: Callable[[Tensor], Tensor]) -> "Encoded":
        """Every tensor through `act`."""
        return Encoded(**{name: act(value) for name, value in vars(self).items()})

    def rows(self) -> list["Encoded"]:
        """One for each sample."""
        return [self.mapped(lambda value, row=row: value[row : row + 1]) for row in range(len(self.depth_min))]


def together(each: Sequence[Encoded]) -> Encoded:
    """The samples as one batch."""
    if len(each) == 1:
        return each[0]
    return Encoded(**{name: torch.cat([getattr(one, name) for one in each]) for name in vars(each[0])})
