"""RealEstate10K: cameras of walks through houses. Only text is published: the frames are the user's to fetch, named by their time.

`{id}.txt`: a url, then lines "microseconds fx fy cx cy 0 0 r11 ... t3", K in shares of width and height, cam_from_world.
"""

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Facts, Frame, Scene
from shared import files

_ABOUT = re.compile(r"^(readme|licen[cs]e|notice|checksum|md5|sha\d)", re.IGNORECASE)
"""Texts that tell of the data set itself."""


class RealEstate10K(Choice):
    """Each text file is a scene."""

    kind: Literal["realestate10k"] = "realestate10k"
    licence: ClassVar[str] = "CC-BY-4.0 (cameras; videos belong to their uploaders)"
    about: ClassVar[About] = About(
        title="RealEstate10K",
        where="https://google.github.io/realestate10k",
        size="text alone: one file a clip",
        layout="{train,test}/ID.txt, and frames as {train,test}/ID/MICROSECONDS.{png,jpg} (or below frames/)",
        brings="cameras; nothing moves",
    )

    def scenes(self, root: str) -> Iterator[str]:
        for uri in files.list_files(root, (".txt",)):
            if not _ABOUT.match(uri.rpartition("/")[2]):
                yield uri.removesuffix(".txt")

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: RealEstate10K) -> None:
        table = f"{uri}.txt"
        rows = reading.numbers(table, skip=1)
        if rows.ndim != 2 or rows.shape[1] != 19:
            raise ValueError(f"{table}: rows of shape {rows.shape}, expected 19 numbers a line")
        self._frames, self._files = _frames(uri)
        shown = np.isin(rows[:, 0].astype(np.int64), list(self._files))
        rows = rows[shown]
        if len(rows) < 2:
            found = f"{len(self._files)} frames, of which {len(rows)} have cameras"
            raise ValueError(f"{uri}: holds {found}; expected pictures named by their microseconds")
        self._times = rows[:, 0].astype(np.int64)
        self._shares = rows[:, 1:5]
        last = np.broadcast_to(np.array([0.0, 0, 0, 1]), (len(rows), 1, 4))
        cam_from_world = np.concatenate((rows[:, 7:].reshape(-1, 3, 4), last), axis=1)
        self._world_from_cam = poses.inverse(poses.checked(table, cam_from_world))
        step = int(np.median(np.diff(self._times)))
        height, width = reading.first_size(self._picture(0))
        self.facts = Facts(
            uri=uri,
            licence=knobs.licence,
            fps=1e6 / step,
            step=step,
            height=height,
            width=width,
            shots=(self._times,),
            metric=False,
            static=True,
        )

    def _picture(self, row: int) -> str:
        return files.join(self._frames, self._files[int(self._times[row])])

    def frame(self, number: int) -> Frame:
        row = int(np.searchsorted(self._times, number))
        size = np.array([self.facts.width, self.facts.height] * 2)
        return Frame(
            rgb=reading.picture(self._picture(row)),
            world_from_cam=self._world_from_cam[row],
            intrinsics=self._shares[row] * size,
        )


def _frames(uri: str) -> tuple[str, dict[int, str]]:
    """The folder of a scene's frames, and its files by time."""
    split, _, name = uri.rpartition("/")
    root, _, half = split.rpartition("/")
    for folder in (uri, files.join(root, "frames", half, name), files.join(split, "frames", name)):
        found = reading.numbered(folder, reading.between("", ".png", ".jpg", ".jpeg"))
        if found:
            return folder, found
    return uri, {}
