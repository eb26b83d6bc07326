"""L_mask: which pixels move."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from train.losses.reduce import masked_mean
from train.sample import Batch, Predicted


def loss(predicted: Predicted, batch: Batch) -> Float[Tensor, " B"]:
    """mean binary cross entropy over all pixels of the key frames."""
    target = batch.dynamic.to(predicted.dynamic_logit.dtype)
    each = F.binary_cross_entropy_with_logits(predicted.dynamic_logit, target, reduction="none")
    return masked_mean(each, batch.has_motion[:, None, None, None].expand_as(each))
