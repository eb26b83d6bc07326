"""`worldreel evaluate model`: generated clips against what annotators find in their pixels, in the layout of the paper's tables.

Without networks of the caller's this prints what flow and geometry tell; features (DINO, CLIP, I3D) join through `train.evaluate`.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.chain import Chain
from pipelines.recipes import AnnotateRecipe
from pipelines.work import Clock
from shared import shards
from shared.clip import AnnotatedClip, Clip
from train import evaluate

QUALITY = ("d.d.", "object d.d.")
GEOMETRY = ("log_rmse", "delta_1.25", "ate", "rte", "rre_deg", "length", "rotation_deg")
SIGNATURES = ("static_collapse", "geometric_inconsistency", "camera_scene_confusion")


def evaluate_model(made: str, recipe: AnnotateRecipe, json_: str | None = None) -> dict[str, Any]:
    """Judge every clip of the shards in `made`, print the tables and the clips that could not be judged.

    The recipe's annotators run on the pixels alone and give the reference. Raises ValueError if there is no clip.
    """
    chain = Chain(recipe, threads=1)
    clips = {clip.id: judged(clip, chain(pixels(clip), Clock())) for clip in shards.read_clips(made)}
    if not clips:
        raise ValueError(f"{made}: holds no clip, expected what `worldreel generate` writes")
    result = {"clips": clips, "total": evaluate.averaged([clip["measures"] for clip in clips.values()])}
    rows = {name: clip["measures"] for name, clip in clips.items()} | {"mean": result["total"]}
    for columns in (QUALITY, GEOMETRY, SIGNATURES):
        print(evaluate.table(rows, columns), end="\n\n")
    for name, clip in clips.items():
        for what, why in clip["refused"].items():
            print(f"{name}: no {what}: {why}")
    if json_ is not None:
        Path(json_).write_text(json.dumps(result, indent=2))
    return result


def pixels(clip: AnnotatedClip) -> AnnotatedClip:
    """The clip as a stranger sees it."""
    return AnnotatedClip(**{part.name: getattr(clip, part.name) for part in fields(Clip)})


def judged(clip: AnnotatedClip, reference: AnnotatedClip) -> dict[str, Any]:
    measures, refused = dict(evaluate.video_quality(reference)), {}
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
