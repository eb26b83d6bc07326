"""What an earlier recipe's labels are still worth: a changed knob redoes what depends on it, and nothing else.

Annotators build on each other: flow, cameras, depth, motion. The first whose knobs changed is redone, and all after it; labels
before it are taken from the earlier shards as they are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.plan import VERSION, digest
from shared import files, shards
from shared.clip import AnnotatedClip

_CHAIN = {"flow": ("flow", "key_flow"), "cameras": ("cameras",), "depth": ("depth", "points"), "motion": ("motion",)}
"""Knobs -> the slots that they fill, in order of dependence."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Where a clip may have been annotated before, and how."""

    shards_uri: str
    block: str
    """The stem of the shards that would hold it."""
    knobs: dict[str, Any]
    version: int


def work_key(clip_id: str, knobs: Mapping[str, Any]) -> str:
    """Changes if the clip's labels would: of the clip, the knobs of all that fills or stores it, and the code's version."""
    names = [name for name in ("source", *_CHAIN, "store") if name in knobs]
    return digest([clip_id, [knobs[name] for name in names], VERSION])


def kept_slots(earlier: Earlier, knobs: Mapping[str, Any]) -> list[str]:
    """Slots that nothing changed upstream of."""
    kept: list[str] = []
    if earlier.knobs.get("source") != knobs.get("source"):
        return kept
    for name, slots in _CHAIN.items():
        if earlier.knobs[name] != knobs[name] or earlier.version != VERSION:
            break
        kept += slots
    return kept


def find(earlier: Earlier, clip_id: str) -> dict[str, Any] | None:
    """The clip's row among the earlier shards, if it was annotated."""
    names = (uri for uri in files.list_files(earlier.shards_uri, (".tar",)) if f"/{earlier.block}-" in uri)
    for uri in names:
        table = shards.read_index(uri)
        for row in table.filter(_is(table, clip_id)).to_pylist():
            if row["status"] == "annotated":
                return row
    return None


def filled(clip: AnnotatedClip, earlier: Earlier, knobs: Mapping[str, Any]) -> AnnotatedClip:
    """The clip with what is kept, as it was stored, in its empty slots; and the scores that belong to it."""
    slots = [slot for slot in kept_slots(earlier, knobs) if getattr(clip, slot) is None]
    row = find(earlier, clip.id) if slots else None
    if row is None:
        return clip
    old = shards.read_clip(earlier.shards_uri, row, slots)
    scores = {name: score for name, score in old.scores.items() if name.partition("_")[0] in slots}
    return clip.with_(scores=scores, **{slot: getattr(old, slot) for slot in slots})


def _is(table: Any, clip_id: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(table["clip_id"], clip_id)  # pyright: ignore[reportAttributeAccessIssue]
