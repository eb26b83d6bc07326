"""TartanAir-V2: as TartanAir, square pictures; depth is a float in the four bytes of a PNG's pixel."""

import io
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field as Knob

from annotate.datasets import reading, tartanair
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene
from shared import files

FLOW_ZERO, FLOW_STEPS = 32768, 64


class TartanAirV2(Choice):
    """The left front camera of each trajectory."""

    kind: Literal["tartanair_v2"] = "tartanair_v2"
    licence: ClassVar[str] = "CC-BY-4.0"
    about: ClassVar[About] = About(
        title="TartanAir-V2",
        where="https://tartanair.org",
        size="flights through many environments at 640 x 640",
        layout="ENV/Data_{easy,hard}/P000/: image_lcam_front/000000_lcam_front.png, "
        "depth_lcam_front/000000_lcam_front_depth.png, pose_lcam_front.txt, flow_lcam_front/000000_000001_flow.{png,npz}",
        brings="metric depth, cameras, flow; nothing moves",
    )
    fps: Annotated[float, Knob(gt=0)] | None = None
    """Nobody tells; None takes every frame, at the recipe's rate."""

    def scenes(self, root: str) -> Iterator[str]:
        return reading.scenes_below(root, lambda names: "pose_lcam_front.txt" in names)

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: TartanAirV2) -> None:
        self._at = {name: files.join(uri, f"{name}_lcam_front") for name in ("image", "depth", "flow")}
        self._pictures = reading.numbered(self._at["image"], reading.between("", "_lcam_front.png", "_lcam_front.jpg"))
        self._depths = reading.numbered(self._at["depth"], reading.between("", "_lcam_front_depth.png"))
        self._flows = tartanair.pairs(self._at["flow"])
        self._world_from_cam = tartanair.flown(files.join(uri, "pose_lcam_front.txt"))
        numbers = tartanair.known(uri, self._pictures, self._depths, len(self._world_from_cam))
        height, width = reading.first_size(files.join(self._at["image"], self._pictures[int(numbers[0])]))
        self.facts = Facts(
            uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=(numbers,), static=True
        )

    def frame(self, number: int) -> Frame:
        z = four_bytes(files.join(self._at["depth"], self._depths[number]))
        sky = ~(z < tartanair.SKY_M)
        return Frame(
            rgb=reading.picture(files.join(self._at["image"], self._pictures[number])),
            z=np.where(sky | ~(z > 0), 0, z).astype(np.float32),
            sky=sky,
            world_from_cam=self._world_from_cam[number],
            intrinsics=tartanair.wide(self.facts.height, self.facts.width),
        )

    def flow(self, start: int, end: int) -> Field | None:
        found = self._flows.get((min(start, end), max(start, end)), {})
        if "flow.npz" in found:
            return _both_ways(
                files.join(self._at["flow"], found["flow.npz"]), "flow_fwd" if start < end else "flow_bwd"
            )
        if start > end or "flow.png" not in found:
            return None
        raw = reading.uint16(files.join(self._at["flow"], found["flow.png"]))[..., ::-1].astype(
            np.float32
        )  # u, v, mask
        valid = raw[..., 2] == 0
        values = (raw[..., :2] - FLOW_ZERO) / FLOW_STEPS * valid[..., None]
        return Field(values=values.astype(np.float32), valid=valid)


def four_bytes(uri: str) -> Float32[np.ndarray, "H W"]:
    """Blue, green, red and alpha are the bytes of a little-endian float32, lowest first."""
    rgba = reading.pixels(uri)
    if rgba.dtype != np.uint8 or rgba.shape[2:] != (4,):
        raise ValueError(f"{uri}: holds {rgba.dtype} of shape {rgba.shape}, expected four channels of 8 bits")
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]).view("<f4")[..., 0]


def _both_ways(uri: str, name: str) -> Field | None:
    if name not in reading.npz_names(uri):
        return None
    with reading.plainly(uri, f"{name} of shape 1, 2, H, W"):
        found = np.load(io.BytesIO(files.read_bytes(uri)), allow_pickle=False)[name]
        values = found.reshape(2, *found.shape[-2:]).transpose(1, 2, 0).astype(np.float32)
    valid = np.all(np.isfinite(values), axis=-1)
    return Field(values=np.where(valid[..., None], values, 0).astype(np.float32), valid=valid)
