"""`worldreel train` and `worldreel generate`: the trainer called with a recipe."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipelines import look
from shared import shards
from train.loop import TrainRecipe


def train(out: str, run: str, recipe: TrainRecipe) -> None:
    """Train on the selection of the annotated run `out`, into the folder `run`; resumes what it finds there."""
    from train import loop

    loop.train(recipe, out, run)


def generate(run: str, out: str, image: str, prompt: str, *, seed: int, steps: int, guidance: float) -> None:
    """One generated clip as a shard in `out`/shards, and as a page to look at in `out`/look."""
    from train import generate as sampler
    from train import loop

    recipe, models = loop.trained(run)
    clip = sampler.generate(
        models,
        read_image(image),
        prompt,
        frames=recipe.frames,
        height=recipe.height,
        width=recipe.width,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    members = shards.encode(clip, shards.Store())
    shards.write_shard(f"{out}/shards", f"generated-{clip.id}", [(clip.id, members, shards.row(clip))])
    look.look(f"{out}/shards", clip.id, f"{out}/look")


def read_image(path: str) -> UInt8[np.ndarray, "H W 3"]:
    """An image file in RGB. Raises ValueError if it is none."""
    import cv2

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, expected an image")
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not an image that OpenCV reads (expected PNG, JPEG, WebP, ...)")
    return np.ascontiguousarray(image[..., ::-1])
