"""The contract of data sets: a data set lists scenes, a scene gives frames, in the conventions of `shared`.

A foreign convention dies in the data set's own file: what leaves it has the corner origin, z along the optical axis, OpenCV's axes
and `world_from_cam`. Adding a data set is its file, and a line in `pipelines/datasets.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from shared import files
from shared.clip import AnnotatedClip
from shared.knobs import Knobs
from shared.video import Video


@dataclass(frozen=True, kw_only=True)
class About:
    """What people need to know before they download it."""

    title: str
    where: str
    size: str
    layout: str
    brings: str
    """The truth that comes with it."""


class Exclusion(Knobs):
    """Scenes that are left out, and why."""

    scenes: tuple[str, ...] = ()
    """Folders of the scene's place below SOURCE, `a` or `a/b`; * stands for anything within a name."""
    why: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What is known of a scene before a picture of it was read."""

    uri: str
    licence: str
    fps: float | None
    """None: nobody knows. Then every frame is taken, at the rate that a recipe asks for."""
    height: int
    width: int
    shots: tuple[Int64[np.ndarray, " N"], ...]
    """Numbers of the frames that there are, rising. A clip lies within one shot; a number that is missing is a gap."""
    metric: bool = True
    static: bool = False
    """True: nothing in it moves."""
    step: int = 1
    """Between the numbers of adjacent frames."""
    max_tracks: int = 0
    """Kept of each clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame at the data set's own size; None: the data set does not tell."""

    rgb: UInt8[np.ndarray, "H W 3"]
    z: Float32[np.ndarray, "H W"] | None = None
    """0 where it is not known."""
    sky: Bool[np.ndarray, "H W"] | None = None
    instances: Int32[np.ndarray, "H W"] | None = None
    """0: what can not move. The others may; whether they do is found out."""
    world_from_cam: Float64[np.ndarray, "4 4"] | None = None
    """The scene's own world."""
    intrinsics: Float64[np.ndarray, " 4"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """Vectors that lead from every pixel of one frame to another frame; 0 where not valid."""

    values: Float32[np.ndarray, "H W C"]
    valid: Bool[np.ndarray, "H W"]
    hidden: Bool[np.ndarray, "H W"] | None = None
    """What is seen here is hidden there, or out of the picture; None: not told."""

    @property
    def seen(self) -> Bool[np.ndarray, "H W"]:
        """Valid, and not known to be hidden there."""
        return self.valid if self.hidden is None else self.valid & ~self.hidden


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracks:
    """Points that are followed through frames, in the scene's world."""

    p_world: Float64[np.ndarray, "T N 3"]
    visible: Bool[np.ndarray, "T N"]
    """In view, in front, and known."""
    valid: Bool[np.ndarray, "T N"]
    """The position is known."""


class Scene(ABC):
    """A scene, opened: its tables are read, its pictures are read one by one. Errors are ValueErrors that name the file."""

    facts: Facts

    @abstractmethod
    def frame(self, number: int) -> Frame: ...

    def flow(self, start: int, end: int) -> Field | None:
        """Optical flow from one frame to another, pixels; None: not given for this pair."""
        return None

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        """Displacement in the scene's world of what is seen at `start` (whose frame is handed in) until `end`."""
        return None

    def tracks(self, numbers: Int64[np.ndarray, " T"]) -> Tracks | None:
        return None

    def caption(self, numbers: Int64[np.ndarray, " T"]) -> str:
        return ""


@runtime_checkable
class Dataset(Protocol):
    """Knobs with a `kind`, that know their scenes."""

    about: ClassVar[About]
    licence: ClassVar[str]

    @property
    def kind(self) -> str: ...

    def takes(self, root: str, uri: str) -> bool:
        """Whether a scene below this root is asked for."""
        ...

    def scenes(self, root: str) -> Iterator[str]:
        """Uris of all scenes below a folder or bucket, in a fixed order; nothing of them is opened."""
        ...

    def refuse_excluded(self, uri: str, place: str) -> None:
        """Raises ValueError with the reason if the scene at this place (see `place_below`) is one to leave out."""
        ...

    def open(self, uri: str) -> Scene:
        """Raises ValueError with the reason for a scene that is incomplete or not to be trusted."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Note:
    """What a data set of real video says of one of its videos."""

    caption: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Footage(Protocol):
    """A data set of real video: cut and screened as any video, and what the data set knows is laid into the clips' slots."""

    about: ClassVar[About]
    licence: ClassVar[str]

    @property
    def kind(self) -> str: ...

    def takes(self, root: str, uri: str) -> bool:
        """Whether a scene below this root is asked for."""
        ...

    def scenes(self, root: str) -> Iterator[str]:
        """Uris of all videos, in a fixed order, those that could not be downloaded among them."""
        ...

    def refuse_excluded(self, uri: str, place: str) -> None:
        """Raises ValueError with the reason if the video at this place (see `place_below`) is one to leave out."""
        ...

    def describe(self, uri: str) -> Note:
        """Raises ValueError with the reason for a video that is left out."""
        ...

    def complete(self, clip: AnnotatedClip, video: Video) -> AnnotatedClip:
        """The clip of this video with every slot filled that the data set can fill."""
        ...


class Choice(Knobs):
    """Which scenes of a data set are taken."""

    only: tuple[str, ...] = ()
    """Folders or scenes below the root that are taken, named as exclusions name them: train, train/a*. Empty: all."""
    exclude: tuple[Exclusion, ...] = ()
    """Scenes that are left out, with the reason; what is given replaces the data set's own list."""
    exclude_list: str | None = None
    """A text file with one more scene, `a` or `a/b`, a line; # begins a comment."""

    def takes(self, root: str, uri: str) -> bool:
        """Whether a scene below this root is asked for."""
        return not self.only or any(_named(uri.removeprefix(root), name) for name in self.only)

    def refuse_excluded(self, uri: str, place: str) -> None:
        """Raises ValueError with the reason if one of the exclusions names the scene at this place below SOURCE."""
        for exclusion in (*self.exclude, *_listed(self.exclude_list)):
            for name in exclusion.scenes:
                if _named(place, name):
                    raise ValueError(f"{uri}: excluded ({name}: {exclusion.why})")


def place_below(root: str, uri: str) -> str:
    """A scene's folders below SOURCE; SOURCE's own name before them where it is the scene itself, or may be its folder.

    What stands above says nothing: scenes below /data/closeup/ are no close-ups.
    """
    below = uri.removeprefix(root.rstrip("/")).strip("/")
    return below if "/" in below else f"{root.rstrip('/').rpartition('/')[2]}/{below}".rstrip("/")


def _named(place: str, name: str) -> bool:
    """Whether these folders, one below the other, are in the place."""
    folders, count = place.strip("/").split("/"), name.strip("/").count("/") + 1
    runs = ("/".join(folders[i : i + count]) for i in range(len(folders) - count + 1))
    return any(fnmatchcase(run, name.strip("/")) for run in runs)


def _listed(uri: str | None) -> tuple[Exclusion, ...]:
    if uri is None:
        return ()
    lines = (line.partition("#")[0].strip() for line in files.read_bytes(uri).decode().splitlines())
    return (Exclusion(scenes=tuple(filter(None, lines)), why=f"listed in {uri}"),)
