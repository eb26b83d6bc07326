"""L_cam: how far the nine numbers of each camera are off (translation in units of the scene, quaternion, radians)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from train import pose
from train.losses.reduce import masked_mean
from train.sample import Batch, Predicted


def loss(predicted: Predicted, batch: Batch, huber_delta: float = 0.1) -> Float[Tensor, " B"]:
    """mean huber(C - Ĉ) over the nine numbers of the key frames.

    huber(d) = d²/2 for |d| < δ, else δ (|d| - δ/2).
    """
    height, width = batch.key_depth.shape[-2:]
    target = pose.encode(batch.world_from_cam, batch.intrinsics, height, width).to(predicted.camera.dtype)
    each = F.huber_loss(predicted.camera, target, reduction="none", delta=huber_delta)
    return masked_mean(each, batch.has_cameras[:, None, None].expand_as(each))
