"""Plain WebDataset tars of others: a video and perhaps a caption a sample, no labels. Enough for the RGB half of the generator."""

import io
from typing import Any

import av
import numpy as np
import pyarrow as pa

from shared import codecs, files, shards
from shared.clip import AnnotatedClip
from shared.index import SELECTION

WORK_KEY = "foreign"
"""What marks a row of such a tar."""
VIDEOS = ("mp4", "mov", "mkv", "webm")
CAPTIONS = ("txt", "caption")


def selection(folder: str) -> pa.Table:
    """A selection of every video in the tars below a folder, found by walking their headers; each video is opened once.

    Raises ValueError if there is none.
    """
    rows = []
    for uri in files.list_files(folder, (".tar",)):
        for row in shards.index_foreign(uri):
            if (found := _row(folder, uri, row)) is not None:
                rows.append(found)
    if not rows:
        raise ValueError(f"{folder}: no tar there holds a video ({', '.join(VIDEOS)})")
    return pa.Table.from_pylist(rows, schema=SELECTION)


def decode(clip_id: str, members: dict[str, bytes], *, pixels: bool = True) -> AnnotatedClip:
    """The clip of a foreign sample, without labels; without `pixels` it is black.

    Raises ValueError if its video does not decode.
    """
    data = next((members[suffix] for suffix in VIDEOS if suffix in members), None)
    if data is None:
        raise ValueError(f"clip {clip_id}: has no video among its members")
    facts = _facts(data)
    black = np.broadcast_to(np.uint8(0), (facts["num_frames"], facts["height"], facts["width"], 3))
    rgb = codecs.decode_rgb(data) if pixels else black
    caption = next((members[suffix].decode(errors="replace") for suffix in CAPTIONS if suffix in members), "")
    return AnnotatedClip(
        id=clip_id,
        rgb=rgb,
        fps=facts["fps"],
        source=clip_id,
        frames=np.arange(len(rgb)),
        caption=caption.strip(),
    )


def _row(folder: str, uri: str, row: dict[str, Any]) -> dict[str, Any] | None:
    parts = [part for part in row["parts"] if part["name"] in (*VIDEOS, *CAPTIONS)]
    video = next((part for part in parts if part["name"] in VIDEOS), None)
    if video is None:
        return None
    facts = _facts(files.read_range(uri, video["offset"], video["size"]))
    return dict.fromkeys(SELECTION.names) | facts | {
        "clip_id": row["clip_id"],
        "source": uri,
        "dataset": WORK_KEY,
        "keep": facts["num_frames"] > 0,
        "weight": 1.0,
        "outcome": "pass",
        "reasons": [],
        "split": "train",
        "caption": "",
        "work_key": WORK_KEY,
        "shard": uri.removeprefix(f"{folder.rstrip('/')}/"),
        "parts": parts,
    }  # fmt: skip


def _facts(data: bytes) -> dict[str, Any]:
    """Frames, size and rate of a video; no frames if it is none."""
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            return {
                "num_frames": frames,
                "height": stream.codec_context.height,
                "width": stream.codec_context.width,
                "fps": float(stream.average_rate or 8),
            }
    except (av.FFmpegError, IndexError):
        return {"num_frames": 0, "height": 0, "width": 0, "fps": 0.0}
