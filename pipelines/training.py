"""`worldreel train` and `worldreel generate`: the trainer and the sampler called with what a person typed."""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from pipelines import look
from pipelines.funnel import number
from shared import shards
from shared.clip import AnnotatedClip
from shared.knobs import load
from train.recipe import TrainRecipe

STOPPED = 143
"""What a shell says of a program that SIGTERM ended."""


def train(out: str, run: str, recipe: TrainRecipe, *, address: str | None = None, ranks: int | None = None) -> None:
    """Train on the selection of the annotated run `out`, into the folder `run`; goes on where it finds itself.

    `address` is a Ray cluster whose actors become its ranks, `ranks` of them; without it, `ranks` are processes of this machine.
    Stopped by a signal it saves, and the exit status says that the run is not whole.
    """
    if address is None and ranks is None:
        from train import loop

        outcome = loop.train(recipe, out, run)
    else:
        from pipelines import ranks as ranks_

        outcome = ranks_.train(recipe, out, run, address=address, ranks=ranks)
    print(outcome.message)
    if not outcome.finished:
        raise SystemExit(STOPPED)


def generate(
    run: str,
    out: str,
    image: str,
    prompt: str,
    *,
    seed: int,
    steps: int,
    guidance: float,
    method: Literal["ddim", "dpm"] = "ddim",
    frames: int | None = None,
    overlap: int | None = None,
    gate_scene_flow: bool = True,
) -> None:
    """One generated clip as a shard in `out`/shards, and as a page in `out`/look.

    More `frames` than the model's window are made window after window (experimental); how far they drift is printed, and kept among
    the clip's scores.
    """
    recipe = _recipe(run)
    from train import models, windows
    from train.generate import Sampler

    size = recipe.sizes[-1]
    overlap = min(9, size.frames - 4) if overlap is None else overlap
    clip, drifts = windows.generate_long(
        models.load(_trained(run)),
        read_image(image),
        prompt,
        num_windows=1 if frames is None else windows.count(frames, size.frames, overlap),
        overlap=overlap,
        frames=size.frames,
        height=size.height,
        width=size.width,
        sampler=Sampler(method=method, steps=steps, guidance=guidance, seed=seed, gate_scene_flow=gate_scene_flow),
    )
    for seam, drift in enumerate(drifts, 1):
        measures = ", ".join(f"{name} {value:.3g}" for name, value in vars(drift).items())
        print(f"seam {seam} (experimental): {measures}")
    keep(clip, out)
    look.look(f"{out}/shards", clip.id, f"{out}/look")


def keep(clip: AnnotatedClip, out: str) -> None:
    """A generated clip as a shard of its own, which every command of ours reads."""
    members = shards.encode(clip, shards.Store())
    shards.write_shard(f"{out}/shards", f"generated-{clip.id}", [(clip.id, members, shards.index_row(clip))])


def cache_text(out: str, folder: str, recipe: TrainRecipe) -> None:
    """Write the embedding of every caption of the kept clips, and of none, with the text encoder of the recipe's base."""
    from train.latents import cache_text as write
    from train.models import parts
    from train.stream import read_selection

    table = read_selection(out)
    captions = sorted({row["caption"] or "" for row in table.select(["caption", "keep"]).to_pylist() if row["keep"]})
    write(parts.text_encoder(recipe.model), captions, Path(folder))
    print(
        f"{number(len(captions), 'caption')} in {folder}; train with --set model.text.kind=cached --set model.text.folder={folder}"
    )


def read_image(path: str) -> UInt8[np.ndarray, "H W 3"]:
    """An image file in RGB. Raises ValueError if it is none."""
    import cv2

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, expected an image")
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not an image that OpenCV reads (expected PNG, JPEG, WebP, ...)")
    return np.ascontiguousarray(image[..., ::-1])


def _recipe(run: str) -> TrainRecipe:
    path = Path(run) / "recipe.yaml"
    if not path.exists():
        raise ValueError(f"{run}: holds no recipe.yaml, expected the folder of a `worldreel train` run")
    return load(TrainRecipe, path)


def _trained(run: str) -> Path:
    path = Path(run) / "model"
    if not path.exists():
        raise ValueError(f"{run}: holds no trained model yet; run the same `worldreel train` again to finish it")
    return path
