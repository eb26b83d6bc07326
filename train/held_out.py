"""How well a trained decoder reads clips that it was never trained on: its answer from clean latents, held against their labels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from shared import camera, metrics
from train import models, pose, reader
from train.models.parts import Models
from train.recipe import TrainRecipe
from train.sample import Batch, Predicted
from train.stages import LABELS
from train.stream import Stream


@torch.no_grad()
def measure(model: Path, recipe: TrainRecipe, root: str, selection: pa.Table, number: int) -> dict[str, float]:
    """Means of `errors` over the first `number` clips of the validation split; what no clip has is left out.

    Raises ValueError if the split has no clip, or none that can be read.
    """
    stream = Stream(selection, seed=0, batch=1, sizes=recipe.sizes, splits=("validation",))
    built: Models = models.load(model)
    found: list[dict[str, float]] = []
    for position in range(min(number, stream.table.num_rows)):
        loaded = reader.read(stream, root, LABELS, recipe.reading, [position])
        if not loaded.failures:
            found.append(errors(built.dpt(built.latents(loaded.batch).geometry.mean), loaded.batch))
    if not found:
        raise ValueError(f"{root}: none of the clips held out could be read")
    names = {name: None for row in found for name in row}
    return {name: float(np.mean([row[name] for row in found if name in row])) for name in names}


def errors(predicted: Predicted, batch: Batch) -> dict[str, float]:
    """Of one clip. Depth after the median scale of the clip; lengths in the scene's unit; angles in degrees."""
    found: dict[str, float] = {}
    valid = batch.key_valid
    if valid.any():
        ours, true = predicted.depth[valid], batch.key_depth[valid]
        scaled = metrics.depth(ours * (true / ours.clamp_min(1e-6)).median(), true)
        found |= {"depth abs_rel": scaled["abs_rel"], "depth log_rmse": scaled["log_rmse"]}
    if bool(batch.has_cameras):
        height, width = batch.rgb.shape[2:4]
        world_from_cam, _ = pose.decode(predicted.camera, height, width)
        apart = (camera.invert(world_from_cam) @ batch.world_from_cam)[0, 1:].double()
        found["camera position"] = float(apart[:, :3, 3].norm(dim=-1).mean())
        found["camera angle"] = float(metrics.angle_deg(apart[:, :3, :3]).mean())
    if bool(batch.has_motion):
        found["mask iou"] = metrics.mask(predicted.dynamic_logit > 0, batch.dynamic)["iou"]
        found |= _scene_flow(predicted, batch, batch.scene_flow_valid)
    return found


def _scene_flow(predicted: Predicted, batch: Batch, valid: Bool[Tensor, "B K H W"]) -> dict[str, float]:
    off = (predicted.scene_flow - batch.scene_flow).norm(dim=-1)
    parts = {"scene flow moving": valid & batch.dynamic, "scene flow still": valid & ~batch.dynamic}
    return {name: float(off[where].mean()) for name, where in parts.items() if where.any()}
