"""BEDLAM2: as BEDLAM, with pictures free of motion blur, half-float depth, and a camera table for each of the two renderings."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from annotate.datasets import bedlam, reading
from annotate.datasets.dataset import About, Choice, Exclusion, Facts, Frame, Scene
from shared import files


class Bedlam2(Choice):
    """Sequences of people, newer."""

    kind: Literal["bedlam2"] = "bedlam2"
    licence: ClassVar[str] = "BEDLAM2 (non-commercial research, no redistribution)"
    about: ClassVar[About] = About(
        title="BEDLAM2",
        where="https://bedlam2.is.tuebingen.mpg.de",
        size="sequences at 1280 x 720 and 30 frames/s",
        layout="SCENE/exr_layers/{image,depth,masks}/seq_000000/seq_000000_0000_{image.png,depth.exr,env.png,00_body.png}, "
        "SCENE/ground_truth/meta_exr_depth_csv/seq_000000_camera.csv",
        brings="metric depth, cameras, persons, dynamic pixels",
    )
    fps: Annotated[float, Field(gt=0)] = 30.0
    max_range_m: Annotated[float, Field(gt=0)] = 200.0
    """Depth beyond is not valid; half floats end at 655 m."""
    edge_px: Annotated[int, Field(ge=0)] = 1
    """Depth so near to an edge is not valid, where only the pictures with motion blur are there."""
    exclude: tuple[Exclusion, ...] = (bedlam.EXCLUDED[1],)

    def scenes(self, root: str) -> Iterator[str]:
        for scene in reading.scenes_below(root, lambda names: "exr_layers/" in names):
            yield from bedlam.sequences(scene, "exr_layers/depth")

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: Bedlam2) -> None:
        scene, _, name = uri.rpartition("/")
        self._knobs = knobs
        layers = files.join(scene, "exr_layers")
        self._depth, self._people = files.join(layers, "depth", name), files.join(layers, "masks", name)
        self._rgb = files.join(layers, "image", name)
        self._pictures = bedlam.numbered(self._rgb, name, "_image.png")
        self._sharp = bool(self._pictures)
        if not self._sharp:
            self._rgb = files.join(scene, "png", name)
            self._pictures = bedlam.numbered(self._rgb, name, ".png", ".jpg")
        self._depths = bedlam.numbered(self._depth, name, "_depth.exr")
        self._masks = bedlam.persons(self._people, name)
        numbers = np.array(sorted(set(self._pictures) & set(self._depths)), np.int64)
        if not len(numbers):
            raise ValueError(f"{uri}: no picture has depth, expected {self._rgb}/*.png and {self._depth}/*_depth.exr")
        height, width = reading.first_size(files.join(self._rgb, self._pictures[int(numbers[0])]))
        table = _camera_table(files.join(scene, "ground_truth"), name)
        self._cameras = bedlam.Cameras(table, reading.table(table), height, width)
        self._cameras.check(numbers)
        shots = (numbers,)
        self.facts = Facts(uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=shots)

    def frame(self, number: int) -> Frame:
        z = bedlam.centimeters(files.join(self._depth, self._depths[number]), self._knobs.max_range_m)
        people = bedlam.people(self._people, self._masks.get(number, {}), z.shape) if self._masks else None
        return Frame(
            rgb=reading.picture(files.join(self._rgb, self._pictures[number])),
            z=z if self._sharp else bedlam.without_edges(z, self._knobs.edge_px),
            instances=people,
            world_from_cam=self._cameras.world_from_cam(number),
            intrinsics=self._cameras.intrinsics(number),
        )


def _camera_table(folder: str, name: str) -> str:
    """That of depth and sharp pictures; else the blurred rendering's, whose pictures belong to its middle sub-frame."""
    for kind in ("meta_exr_depth_csv", "meta_exr_csv"):
        names = [n for n in reading.folder(files.join(folder, kind)) if n.startswith(f"{name}_") and n.endswith(".csv")]
        names = sorted((n for n in names if "camera" in n), key=_subframe)
        whole = [n for n in names if "subframe" not in n]
        if names:
            return files.join(folder, kind, whole[0] if whole else names[len(names) // 2])
    raise ValueError(f"{folder}: has no camera table of {name}, expected meta_exr_depth_csv/{name}_camera.csv")


def _subframe(name: str) -> int:
    found = re.search(r"subframe_?(\d+)", name)
    return int(found[1]) if found else -1
