"""`worldreel evaluate model`: generated clips against what annotators find in their pixels, in the layout of the paper's tables.

Columns that ask for a network (DINO, CLIP, AMT, Inception, I3D) are filled by the caller's files and are a dash without.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipelines.chain import Chain
from pipelines.recipes import AnnotateRecipe
from pipelines.work import Clock
from shared import files, shards
from shared.clip import AnnotatedClip, Clip
from train import evaluate, networks
from train.recipe import TrainRecipe

QUALITY = ("d.d.", "object d.d.", "m.s.", "i2v-s", "i2v-b", "s.c.", "b.c.", "FVD", "FID")
"""Table 1; object dynamic degree and background consistency are ours to add."""
GEOMETRY = ("log_rmse", "delta_1.25", "ate", "rte", "rre_deg", "length", "rotation_deg")
"""Table 2."""
SIGNATURES = ("static_collapse", "geometric_inconsistency", "camera_scene_confusion")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Paths of the caller's networks, see `train.networks`; None leaves its columns out."""

    subject: str | None = None
    """DINO ViT-B/16: i2v subject, subject consistency."""
    background: str | None = None
    """CLIP ViT-B/32: background consistency."""
    image_background: str | None = None
    """DreamSim: i2v background."""
    interpolator: str | None = None
    """AMT-S: motion smoothness."""
    fid: str | None = None
    """Inception."""
    fvd: str | None = None
    """I3D."""
    real: str | None = None
    """Shards of real clips that both are measured against."""
    fvd_frames: int = 16
    """The first so many of a clip."""

    def __post_init__(self) -> None:
        if (self.fid or self.fvd) and self.real is None:
            raise ValueError("FID and FVD compare with real clips: give their shards with --real")


def evaluate_model(
    made: str, recipe: AnnotateRecipe, json_: str | None = None, *, given: Networks | None = None
) -> dict[str, Any]:
    """Judge every clip of the shards in `made`, print the tables and the clips that could not be judged.

    The recipe's annotators run on the pixels alone and give the reference. Raises ValueError if there is no clip.
    """
    given, chain = given or Networks(), Chain(recipe, threads=1)
    seeing: dict[str, Any] = {
        "subject": networks.backbone(given.subject) if given.subject else None,
        "background": networks.backbone(given.background) if given.background else None,
        "image_background": networks.backbone(given.image_background) if given.image_background else None,
        "interpolate": networks.interpolator(given.interpolator) if given.interpolator else None,
    }
    clips, videos = {}, []
    for clip in shards.read_clips(made):
        clips[clip.id] = judged(clip, chain(pixels(clip), Clock()), **seeing)
        videos.append(clip.rgb)
    if not clips:
        raise ValueError(f"{made}: holds no clip, expected what `worldreel generate` writes")
    total = evaluate.averaged([clip["measures"] for clip in clips.values()])
    distances, notes = _frechet(given, videos)
    result = {"clips": clips, "total": total | distances, "notes": notes}
    rows = {name: clip["measures"] for name, clip in clips.items()} | {"mean": result["total"]}
    for columns in (QUALITY, GEOMETRY, SIGNATURES):
        print(evaluate.table(rows, columns), end="\n\n")
    seen = sum("log_rmse" in clip["measures"] for clip in clips.values())
    print(f"geometry: of {seen} of {len(clips)} clips, those whose pixels tell depth to the annotators")
    print("signatures: by the clip's own flow, depth, cameras and scene flow; all else by what is found in its pixels")
    for note in (*notes, *_stated(given, recipe)):
        print(note)
    for clip in clips.values():
        for what, why in clip["refused"].items():
            print(f"no {what}: {why}")
    if json_ is not None:
        files.write_whole(json_, json.dumps(result, indent=2).encode())
    return result


def evaluate_latents(out: str, recipe: TrainRecipe, clips: int) -> dict[str, float]:
    """Print what the recipe's VAE keeps of the depth and flow of kept clips, in the mean."""
    from train import models, reader
    from train.stages import LATENT
    from train.stream import Stream, read_selection

    stream = Stream(read_selection(out), batch=1, sizes=recipe.sizes, splits=("train", "validation", "test"))
    built = models.build(recipe.model)
    count = min(clips, stream.table.num_rows)
    batches = (reader.read(stream, out, LATENT, recipe.reading, [position]).batch for position in range(count))
    found = evaluate.averaged([evaluate.round_trip(built.vae, batch, recipe.model.latent) for batch in batches])
    size = recipe.sizes[0]
    print(f"{count} clips at {size}, VAE of {recipe.model.base}")
    print(
        evaluate.table(
            {"with the VAE": found, "without": {n[:-6]: v for n, v in found.items() if n.endswith("limit")}},
            ("AbsRel", "EPE"),
        )
    )
    return found


def pixels(clip: AnnotatedClip) -> AnnotatedClip:
    """The clip as a stranger sees it."""
    return AnnotatedClip(**{part.name: getattr(clip, part.name) for part in fields(Clip)})


def judged(clip: AnnotatedClip, reference: AnnotatedClip, **seeing: Any) -> dict[str, Any]:
    """Measures of one clip, and why others could not be taken; `seeing` are the networks of `evaluate.video_quality`."""
    measures, refused = dict(evaluate.video_quality(reference, **seeing)), {}
    try:
        measures |= evaluate.geometry(clip, reference)
    except ValueError as error:
        refused["geometry"] = str(error)
    try:
        found = evaluate.signatures(clip)
        measures |= {name: float(getattr(found, name)) for name in SIGNATURES}
        measures |= {f"own {name}": value for name, value in found.measures.items()}
    except ValueError as error:
        refused["signatures"] = str(error)
    degenerate = reference.cameras.degenerate if reference.cameras else None
    return {"measures": measures, "refused": refused, "reference_flags": degenerate}


def _frechet(given: Networks, made: list[UInt8[np.ndarray, "T H W 3"]]) -> tuple[dict[str, float], list[str]]:
    """FVD and FID as far as networks are given, and what has to be said with each."""
    if given.real is None or not (given.fid or given.fvd):
        return {}, []
    real = [clip.rgb for clip in shards.read_clips(given.real)]
    found, notes = {}, []
    for name, path, load in (("FVD", given.fvd, networks.video_features), ("FID", given.fid, networks.frame_features)):
        if path is None:
            continue
        frames = given.fvd_frames if name == "FVD" else None
        network: Callable[..., Any] = load(path)
        found[name] = evaluate.frechet_of(network, [rgb[:frames] for rgb in real], [rgb[:frames] for rgb in made])
        length = min(len(rgb[:frames]) for rgb in (*real, *made))
        notes.append(
            f"{name}: {len(real)} real and {len(made)} made clips of at least {length} frames, covariance with N - 1, "
            f"weights {networks.weight_hash(path)}"
        )
    return found, notes


def _stated(given: Networks, recipe: AnnotateRecipe) -> list[str]:
    """Who judged."""
    used = {name: getattr(given, name) for name in ("subject", "background", "image_background", "interpolator")}
    lines = [f"{name}: {Path(path).name}, weights {networks.weight_hash(path)}" for name, path in used.items() if path]
    return [*lines, f"reference: {recipe.cameras.kind} cameras, {recipe.depth.kind} depth, {recipe.flow.kind} flow"]
