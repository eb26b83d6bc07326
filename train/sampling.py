"""A generated clip as one picture, now and then in a long run: numbers do not show a world that falls apart."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from shared import pictures
from shared.clip import AnnotatedClip
from train import parallel, reader
from train.generate import generate
from train.models.parts import Models
from train.parallel import World
from train.recipe import TrainRecipe
from train.stream import Stream

COLUMNS = 5
STEPS = 20
"""Of denoising: enough to judge by."""


def write(recipe: TrainRecipe, root: str, stream: Stream, models: Models, world: World, path: Path) -> None:
    """Generates from the first frame and caption of the stream's first sample, always the same. Every rank must call it."""
    batch = reader.read(stream, root, {"rgb"}, recipe.reading, [0]).batch
    first = ((batch.rgb[0, 0].numpy() + 1) * 127.5).round().astype(np.uint8)
    frames, height, width = batch.rgb.shape[1:4]
    with parallel.precision(recipe.parallel, world.device):
        clip = generate(
            models, first, batch.captions[0], frames=frames, height=height, width=width, steps=STEPS, seed=recipe.seed
        )
    if world.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), sheet(clip)[..., ::-1])


def sheet(clip: AnnotatedClip) -> UInt8[np.ndarray, "H W 3"]:
    """RGB, depth, flow, length of scene flow and what moves, from top to bottom; time runs to the right."""
    rows = [clip.rgb]
    if clip.depth is not None:
        rows.append(pictures.depth(clip.depth.z, clip.depth.valid))
    if clip.flow is not None:
        rows.append(pictures.flow(clip.flow.forward))
    if clip.motion is not None:
        length = np.linalg.norm(clip.motion.scene_flow, axis=-1).astype(np.float32)
        rows.append(pictures.heat(length, max(float(np.percentile(length, 99)), 1e-6)))
        rows.append(pictures.marked(clip.rgb, clip.motion.dynamic))
    return np.concatenate([np.concatenate(list(_spread(row)), axis=1) for row in rows])


def _spread(frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
    return frames[np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)]
