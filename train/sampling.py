"""A generated clip as a video and a picture, now and then in a long run: numbers do not show a world that falls apart."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from shared import codecs, pictures
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
    first = batch.rgb[0, 0].numpy()
    frames, height, width = batch.rgb.shape[1:4]
    with parallel.precision(recipe.parallel, world.device):
        clip = generate(
            models, first, batch.captions[0], frames=frames, height=height, width=width, steps=STEPS, seed=recipe.seed
        )
    if world.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = panels(clip)
        cv2.imwrite(str(path), np.concatenate([np.concatenate(list(_spread(row)), axis=1) for row in rows])[..., ::-1])
        left, right = (np.concatenate(half, axis=1) for half in (rows[0::2], rows[1::2]))
        path.with_suffix(".mp4").write_bytes(codecs.encode_rgb(np.concatenate((left, right), axis=2), clip.fps))


def panels(clip: AnnotatedClip) -> list[UInt8[np.ndarray, "T H W 3"]]:
    """RGB, depth, flow, points, length of scene flow, what moves; the last of what leads from frame to frame is there twice."""
    assert clip.depth is not None  # a generated clip has every label
    assert clip.motion is not None
    rows = [clip.rgb, pictures.depth(clip.depth.z, clip.depth.valid)]
    if clip.flow is not None:  # but for models without a geometry latent
        rows.append(_closed(pictures.flow(clip.flow.forward)))
    else:
        rows.append(np.zeros_like(clip.rgb))
    length = np.linalg.norm(clip.motion.scene_flow, axis=-1).astype(np.float32)
    rows.append(pictures.points(clip.pointmap(), clip.depth.valid))
    rows.append(_closed(pictures.heat(length, max(float(np.percentile(length, 99)), 1e-6))))
    rows.append(pictures.marked(clip.rgb, clip.motion.dynamic))
    return rows


def _closed(pairs: UInt8[np.ndarray, "P H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    return np.concatenate((pairs, pairs[-1:]))


def _spread(frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
    return frames[np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)]
