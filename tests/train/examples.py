"""The smallest true batch and model, made once for all tests that need them, and predictions that are the truth."""

from dataclasses import replace
from functools import cache

import scene
import torch

from train import models, pose, sample
from train.models.parts import Models
from train.sample import Batch, Predicted

FRAMES, HEIGHT, WIDTH = 9, 48, 64
"""Three latent frames of 6 x 8 cells."""


@cache
def batch(*kinds: str) -> Batch:
    """Closed-form scenes with every label true."""
    return sample.collate([sample.from_clip(scene.tiny(kind), FRAMES, HEIGHT, WIDTH) for kind in kinds])


@cache
def built(**knobs) -> Models:
    """A tiny model; leave its weights as they are."""
    return models.build(models.ModelKnobs(**knobs))


def truth(of: Batch, dtype: torch.dtype = torch.float32) -> Predicted:
    """What a perfect decoder would say."""
    camera = pose.encode(of.world_from_cam, of.intrinsics, HEIGHT, WIDTH)
    logit = torch.where(of.dynamic, 30.0, -30.0)
    found = Predicted(
        depth=of.key_depth, points=of.points, camera=camera, dynamic_logit=logit, scene_flow=of.scene_flow
    )
    return changed(found, **{name: value.to(dtype) for name, value in vars(found).items()})


def changed(predicted: Predicted, **parts: torch.Tensor) -> Predicted:
    return replace(predicted, **parts)
