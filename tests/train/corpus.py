"""A small annotated run on disk: shards of rendered clips with exact labels, and the selection that names them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import scene

from shared import shards
from shared.index import SELECTION
from shared.members import Store

KINDS = ("lateral", "orbit", "follow", "many_moving", "dolly", "handheld")


def write(root: Path, *, frames: int = 9, height: int = 64, width: int = 96, copies: int = 1, **columns) -> Path:
    """Two shards of `copies` times six clips; `columns` are selection columns, as values or functions of the row's number."""
    store, rows = Store(), []
    clips = [scene.clip(kind, frames=frames, height=height, width=width, focal=0.9 * width) for kind in KINDS]
    for copy in range(copies):
        for shard, half in (("a", clips[:3]), ("b", clips[3:])):
            name = f"{shard}-{copy:06d}"
            items = []
            for clip in half:
                clip_id = f"{clip.id}x{copy}".replace("/", "-")
                clip = clip.with_(id=clip_id)
                row = shards.index_row(clip, dataset=shard, work_key=clip_id)
                items.append((clip_id, shards.encode(clip, store), row))
            shards.write_shard(root / "shards", name, items)
    for number, row in enumerate(shards.read_index(root / "shards").to_pylist()):
        chosen = {name: row.get(name) for name in SELECTION.names} | {
            "keep": True, "weight": 1.0, "outcome": "pass", "reasons": [], "split": "train",
            "shard": f"shards/{row['shard']}",
        }  # fmt: skip
        rows.append(chosen | {name: give(number) if callable(give) else give for name, give in columns.items()})
    pq.write_table(pa.Table.from_pylist(rows, schema=SELECTION), root / "selection.parquet")
    return root
