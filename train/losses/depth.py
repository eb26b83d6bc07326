"""L_depth: how far the depth is off, in units of the scene."""

from jaxtyping import Float
from torch import Tensor

from train.losses.reduce import masked_mean
from train.sample import Batch, Predicted


def loss(predicted: Predicted, batch: Batch) -> Float[Tensor, " B"]:
    """mean |D - D̂| over valid pixels of the key frames."""
    return masked_mean((predicted.depth - batch.key_depth).abs(), batch.key_valid)
