"""The spool: what waits until its block is whole. One file for each cut video, one for each annotated clip, whole or absent.

What is finished is what lies here; the ledger only tells what was tried.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from annotate.cut import Span
from pipelines.plan import digest
from shared import files
from shared.index import SCORE
from shared.video import Video

CUT_SUFFIX, CLIP_SUFFIX = ".cut.json", ".clip"


@dataclass(frozen=True, kw_only=True)
class Slip:
    """One clip of a cut video before it has pixels, as much of it as the driver and the index need."""

    clip_id: str
    reason: str
    """Why it is screened out; empty: annotate it."""
    row: dict[str, Any]
    """Its index row, should it have no labels."""


def video_key(uri: str) -> str:
    """Names a video in spool, ledger and, if it fails, index: hex, as clip ids are."""
    return digest(uri)


def cut_uri(folder: str, key: str) -> str:
    return files.join(folder, f"{key}{CUT_SUFFIX}")


def clip_uri(folder: str, clip_id: str) -> str:
    return files.join(folder, f"{clip_id}{CLIP_SUFFIX}")


def empty(folder: str) -> None:
    """Removes a block's folder; half done, it is done again."""
    if not files.is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif files.exists(folder):
        for uri in list(files.list_files(folder)):
            files.remove(uri)


def remove(folder: str) -> None:
    """Removes the whole spool, if nothing waits in it."""
    if not files.is_remote(folder):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def sweep(folder: str, committed: set[str]) -> None:
    """Removes what a killed run left of blocks that are committed."""
    if not files.exists(folder):
        return
    remote = files.is_remote(folder)
    left = {uri.split("/")[-2] for uri in files.list_files(folder)} if remote else set(os.listdir(folder))
    for block in sorted(left & committed):
        empty(files.join(folder, block))


def write_spans(uri: str, dataset: str, video: Video, spans: list[Span]) -> None:
    """All clips of one video, kept or not."""
    facts = {f.name: _plain(getattr(video, f.name)) for f in fields(video)}
    content = {"dataset": dataset, "video": facts, "spans": [_span_facts(span) for span in spans]}
    files.write_whole(uri, json.dumps(content).encode())


def read_slips(uri: str) -> list[Slip]:
    """Every clip of a cut video, in order."""
    content = json.loads(files.read_bytes(uri))
    return [Slip(clip_id=span["id"], reason=span["reason"], row=_row(content, span)) for span in content["spans"]]


def read_span(uri: str, number: int) -> Span:
    """One clip of a cut video, ready to be loaded."""
    content = json.loads(files.read_bytes(uri))
    facts, span = content["video"], content["spans"][number]
    video = Video(**facts | {"time_base": Fraction(facts["time_base"]), "pts": np.array(facts["pts"], np.int64)})
    return Span(
        id=span["id"],
        video=video,
        frames=np.array(span["frames"], np.int64),
        fps=span["fps"],
        scores=span["scores"],
        phash=span["phash"],
        reason=span["reason"],
    )


def video_row(
    key: str, dataset: str, uri: str, caption: str, licence: str, scores: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The index row of a video of which not even clips are known."""
    row = {"clip_id": key, "source": uri, "dataset": dataset, "caption": caption, "licence": licence}
    return row | {SCORE + name: score for name, score in (scores or {}).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Fraction) else value


def _span_facts(span: Span) -> dict[str, Any]:
    frames = span.frames.tolist()
    return {
        "id": span.id,
        # of what is screened out only the ends are ever asked for, and a shot may be long
        "frames": [frames[0], frames[-1]] if span.reason else frames,
        "num_frames": len(frames),
        "fps": span.fps,
        "scores": dict(span.scores),
        "phash": span.phash,
        "reason": span.reason,
    }


def _row(content: dict[str, Any], span: dict[str, Any]) -> dict[str, Any]:
    video = content["video"]
    return {
        **video_row(span["id"], content["dataset"], video["uri"], video["caption"], video["licence"]),
        "first_frame": span["frames"][0],
        "last_frame": span["frames"][-1],
        "num_frames": span["num_frames"],
        "height": video["height"],
        "width": video["width"],
        "fps": span["fps"],
        "phash": span["phash"],
        **{SCORE + name: score for name, score in span["scores"].items()},
    }
