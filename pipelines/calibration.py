"""`worldreel calibrate`: precision and recall of every gate on true clips made wrong, or of the verdicts on real errors."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate import calibrate, calibration_page, usable, verdicts
from curate.recipe import CurateRecipe
from curate.usable import Usable
from shared import files, shards


def run(clips: str, recipe: CurateRecipe, to: str | None) -> str:
    """Corrupt the true labels of a folder of shards, measure, and print the page; with `to`, also write it there.

    Raises ValueError if a clip has no true depth, cameras, flow and motion.
    """
    found = calibrate.observe(shards.read_clips(clips))
    return _printed(calibration_page.page(found, recipe.checks, f"worldreel calibrate {clips}"), to)


def against(clips: str, truth: str, recipe: CurateRecipe, to: str | None) -> str:
    """Judge annotators' labels by their stored scores, measure their errors against the truth, and print how well the two agree.

    Raises ValueError if no clip has its truth there.
    """
    from pipelines import evaluate

    table, found = evaluate.evaluate_labels(clips, truth)
    print(table, end="\n\n")
    errors = {clip_id: _numbers(clip) for clip_id, clip in found["clips"].items()}
    known = pa.array(list(errors), pa.string())
    indexes = [index.filter(pc.is_in(index["clip_id"], known)) for index in shards.iter_index(clips)]  # pyright: ignore[reportAttributeAccessIssue]
    rows = pa.concat_tables(indexes, promote_options="default")
    said = f"Made by `worldreel calibrate {clips} --truth {truth}`."
    judged = verdicts.judge(rows, recipe)
    in_order = [errors[clip_id] for clip_id in rows["clip_id"].to_pylist()]
    return _printed(usable.page(judged, in_order, recipe, Usable(), said), to)


def _numbers(clip: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in clip.items() if isinstance(value, float)}


def _printed(page: str, to: str | None) -> str:
    if to is not None:
        files.write_whole(to, page.encode())
    print(page)
    return page
