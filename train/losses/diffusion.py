"""L_diff = L_diff(rgb) + L_diff(geometry): the standard diffusion loss of each latent (equation 1)."""

from jaxtyping import Float
from torch import Tensor


def loss(predicted_v: Float[Tensor, "B F C h w"], target_v: Float[Tensor, "B F C h w"]) -> Float[Tensor, " B"]:
    """mean (v̂ - v)² of one latent.

    It equals the published form, mean (ẑ0 - z0)² / (1 - alpha_bar), whose weight of up to 1176 never has to be computed.
    """
    return (predicted_v - target_v).square().flatten(1).mean(1)
