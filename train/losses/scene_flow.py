"""L_flow: how far the scene flow is off, in units of the scene."""

from jaxtyping import Float
from torch import Tensor

from train.losses.reduce import masked_mean
from train.sample import Batch, Predicted


def loss(predicted: Predicted, batch: Batch, foreground: float = 9.0) -> Float[Tensor, " B"]:
    """Σ w |F3d - F̂3d|₁ / Σ w with w = M_flow (1 + 9 M_fg): what moves is rare, and is what matters.

    M_flow is where the label is valid; static pixels are valid with target 0. The last key frame has no label.
    """
    weight = batch.scene_flow_valid * (1 + foreground * batch.dynamic.to(predicted.scene_flow.dtype))
    return masked_mean((predicted.scene_flow - batch.scene_flow).abs().sum(-1), weight)
