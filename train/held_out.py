"""How well a trained decoder reads clips that it was never trained on: its answer from clean latents, held against their labels."""

from pathlib import Path

import pyarrow as pa
import torch

from train import evaluate, models, reader
from train.models.parts import Models
from train.recipe import TrainRecipe
from train.stages import LABELS
from train.stream import Stream

MEASURES = (
    "depth log-RMSE scaled",
    "d1.25 scaled",
    "camera position",
    "camera angle",
    "mask IoU",
    "scene flow moving",
    "scene flow static",
)
"""Those of `evaluate.prediction` that a table has room for."""


@torch.no_grad()
def measure(model: Path, recipe: TrainRecipe, root: str, selection: pa.Table, number: int) -> dict[str, float]:
    """Means of `MEASURES` over the first `number` clips of the validation split; what no clip has is left out.

    Raises ValueError if the split has no clip, or none that can be read.
    """
    stream = Stream(selection, seed=0, batch=1, sizes=recipe.sizes, splits=("validation",))
    built: Models = models.load(model)
    found: list[dict[str, float]] = []
    for position in range(min(number, stream.table.num_rows)):
        loaded = reader.read(stream, root, LABELS, recipe.reading, [position])
        if not loaded.failures:
            predicted = built.dpt(built.latents(loaded.batch).geometry.mean)
            found.append(evaluate.prediction(predicted, loaded.batch))
    if not found:
        raise ValueError(f"{root}: none of the clips held out could be read")
    means = evaluate.averaged(found)
    return {name: means[name] for name in MEASURES if name in means}
