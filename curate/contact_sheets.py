"""The few clips that a report shows: which ones, and one strip of pictures of each."""

from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from curate import verdicts
from curate.check import limits
from curate.recipe import CurateRecipe, checks_for
from curate.summary import Summary
from curate.verdicts import FAIL
from shared import files, pictures, shards, trust
from shared.clip import AnnotatedClip

PANEL_HEIGHT = 110
GATES = 6
"""Gates whose rejects are shown: those that reject most."""
RESIDUAL_PX = 5.0
"""Of the reddest residual, at 720 wide."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One clip in the report."""

    clip_id: str
    caption: str
    jpeg: bytes


def choose(summary: Summary, recipe: CurateRecipe) -> dict[str, list[str]]:
    """Group -> clip ids: what passed, what a little more or less would have turned, and what each of the busiest gates rejected."""
    rows, number = summary.sample, recipe.report.pictures
    if rows is None or not number:
        return {}
    ids, level = np.array(rows["clip_id"].to_pylist()), rows["level"].to_numpy()
    groups = {"passed": ids[level == 0][:number].tolist(), "flagged, kept": ids[level == 1][:number].tolist()}
    groups["borderline"] = ids[np.argsort(_margin(rows, recipe), kind="stable")][:number].tolist()
    reasons = rows["reasons"].to_pylist()
    for gate, _ in summary.failed_by.most_common(GATES):
        hit = [any(_rejects(gate, reason, recipe) for reason in told) for told in reasons]
        groups[f"rejected by {gate}"] = ids[np.array(hit, bool) & (level == FAIL)][:number].tolist()
    return {group: found for group, found in groups.items() if found}


def _rejects(gate: str, reason: str, recipe: CurateRecipe) -> bool:
    """Whether the reason is this gate's, and not only that it flags the clip."""
    name, _, score = gate.partition(".")
    if not score:
        return reason.startswith(f"{name}: ")
    checks = [
        getattr(some, name) for some in (recipe.checks, *(checks_for(recipe.checks, e) for e in recipe.per_source))
    ]
    bounds = [limits(check)[score].bounds() for check in checks if check is not None and score in limits(check)]
    ends = tuple(f", {side} {bound:g}" for some in bounds for outcome, side, bound in some if outcome == "fail")
    return reason.startswith(f"{name}: {score} ") and reason.endswith(ends)


def _margin(rows: pa.Table, recipe: CurateRecipe) -> np.ndarray:
    """How far, in parts of the bound, each clip is from the nearest bound that rejects."""
    nearest = np.full(len(rows), np.inf)
    for _, check in recipe.checks:
        for score, limit in limits(check).items() if check is not None else ():
            for outcome, _, bound in limit.bounds():
                if outcome == "fail" and bound:
                    distance = np.abs(verdicts.column(rows, score) / bound - 1)
                    nearest = np.fmin(nearest, distance)
    return nearest


def strips(out_uri: str, clip_ids: list[str]) -> dict[str, Strip]:
    """A strip of each clip; the only place where curation reads pixels."""
    from pyarrow import parquet

    columns = ["clip_id", "source", "outcome", "reasons", "shard", "parts"]
    with files.open_input(files.join(out_uri, "selection.parquet")) as file:
        table = parquet.read_table(file, columns=columns, filters=[("clip_id", "in", clip_ids)])
    found = {}
    for row in table.to_pylist():
        clip = shards.read_clip(out_uri, row)
        caption = f"{row['outcome']} · {row['source'].rpartition('/')[2]} · " + (
            "; ".join(row["reasons"]) or "no objection"
        )
        found[clip.id] = Strip(clip_id=clip.id, caption=caption, jpeg=_jpeg(panels(clip)))
    return found


def panels(clip: AnnotatedClip) -> UInt8[np.ndarray, "h w 3"]:
    """First and middle frame, then the middle frame's depth, flow, moving pixels and rigid residual; gray where there is none."""
    t = min(clip.shape[0] // 2, max(clip.shape[0] - 2, 0))
    blank = np.broadcast_to(pictures.UNKNOWN, (*clip.shape[1:], 3))
    shown = [clip.rgb[0], clip.rgb[t]]
    shown.append(pictures.depth(clip.depth.z, clip.depth.valid)[t] if clip.depth else blank)
    shown.append(pictures.flow(clip.flow.forward[t : t + 1])[0] if clip.flow and len(clip.flow.forward) else blank)
    shown.append(pictures.marked(clip.rgb[t : t + 1], clip.motion.dynamic[t : t + 1])[0] if clip.motion else blank)
    shown.append(_residual(clip, t))
    width = round(clip.shape[2] * PANEL_HEIGHT / clip.shape[1])
    return np.concatenate([cv2.resize(p, (width, PANEL_HEIGHT), interpolation=cv2.INTER_AREA) for p in shown], axis=1)


def _residual(clip: AnnotatedClip, t: int) -> UInt8[np.ndarray, "H W 3"]:
    """|F - F_rigid| to the next frame, red at `RESIDUAL_PX`; gray where it cannot be had."""
    found = trust.residual_px(clip, slice(t, t + 1))
    if found is None or not len(found[0]):
        return np.broadcast_to(pictures.UNKNOWN, (*clip.shape[1:], 3)).astype(np.uint8)
    error, known = found
    return pictures.heat(error, RESIDUAL_PX, known)[0]


def _jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert done
    return data.tobytes()
