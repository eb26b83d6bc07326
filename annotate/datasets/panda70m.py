"""Panda-70M as video2dataset downloads it: `00000/0000001_00002.mp4` with a .json beside it. Captions and filters, no truth."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from annotate.datasets import reading
from annotate.datasets.dataset import About, Choice, Note
from shared import files
from shared.clip import AnnotatedClip
from shared.video import Video

_KEY = re.compile(r"^\d+(_\d+)?\.json$")


class Panda70M(Choice):
    """Each downloaded clip is a video."""

    kind: Literal["panda70m"] = "panda70m"
    licence: ClassVar[str] = "Panda-70M (research only; videos belong to their uploaders)"
    about: ClassVar[About] = About(
        title="Panda-70M",
        where="https://snap-research.github.io/Panda-70M",
        size="70.7 million clips, as lists of urls",
        layout="SHARD/0000001_00002.{mp4,json,txt}, as iejMac/video2dataset writes them",
        brings="captions; filters, scores and shots choose the videos",
    )
    filters: tuple[str, ...] = ("desirable",)
    """Values of `desirable_filtering` that are kept; videos of splits without it are kept."""
    min_matching_score: Annotated[float, Field(ge=0, le=1)] = 0.43
    """Of caption and video."""
    max_shots: Annotated[int, Field(ge=1)] = 1
    """In a clip, as the data set's own detector counted."""

    def scenes(self, root: str) -> Iterator[str]:
        for uri in files.list_files(root, (".json",)):
            if _KEY.match(uri.rpartition("/")[2]):
                yield uri[: -len(".json")] + ".mp4"

    def describe(self, uri: str) -> Note:
        told = reading.document(uri[: -len(".mp4")] + ".json")
        if (status := str(told.get("status", "success"))) != "success":
            why = told.get("error_message") or "no reason given"
            raise ValueError(f"{uri}: its download ended with {status} ({why})")
        filtered = _only(told.get("desirable_filtering", ""))
        if filtered and filtered not in self.filters:
            raise ValueError(f"{uri}: the data set's filter says {filtered}, expected {' or '.join(self.filters)}")
        with reading.plainly(uri, "a matching_score and a list of shots"):
            score = float(_only(told.get("matching_score", 1.0)))
            shots = _shots(told.get("shot_boundary_detection"))
        if score < self.min_matching_score:
            raise ValueError(f"{uri}: caption and video match by {score:.2f}, expected {self.min_matching_score:g}")
        if shots > self.max_shots:
            raise ValueError(f"{uri}: holds {shots} shots, expected {self.max_shots} at most")
        return Note(caption=str(_only(told.get("caption", ""))), scores={"panda_matching": score})

    def complete(self, clip: AnnotatedClip, video: Video) -> AnnotatedClip:
        return clip


def _shots(told: Any) -> int:
    """How many intervals: some downloaders keep the list as its text, or one interval bare."""
    found = json.loads(told.replace("'", '"')) if isinstance(told, str) and told.strip() else told
    if not found:
        return 1
    while len(found) == 1 and isinstance(found[0], (list, tuple)) and isinstance(found[0][0], (list, tuple)):
        found = found[0]
    return len(found) if isinstance(found[0], (list, tuple)) else 1


def _only(value: Any) -> Any:
    """The first of a list: some downloaders keep a value for every clip of a video."""
    return (value[0] if value else "") if isinstance(value, list) else value
