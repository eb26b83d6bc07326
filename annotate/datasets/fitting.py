"""Labels at a clip's size: resized to cover and cropped in the middle exactly as `annotate.cut.fitted` does with the pictures.

Convention: corner origin. A pixel center (u, v) of the clip lies at ((u + left) / scale_x, (v + top) / scale_y) of the source.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from annotate import cut as cutting
from annotate.datasets.dataset import Field

_SAME_SURFACE = 1.05
"""Depths whose ratio is below this belong together: between them is interpolated."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """From pictures of `height` x `width` to `to_height` x `to_width`."""

    height: int
    width: int
    to_height: int
    to_width: int
    layer: tuple[int, int] | None = None
    """Height and width of labels that cover the same picture at another size; None: that of the picture."""

    @property
    def same(self) -> bool:
        return self._size == (self.to_height, self.to_width) == (self.height, self.width)

    @property
    def _size(self) -> tuple[int, int]:
        return self.layer or (self.height, self.width)

    @property
    def scale(self) -> tuple[float, float]:
        """Of u and v. The pictures are resized to whole pixels, so the two may differ a little."""
        scale = max(self.to_height / self.height, self.to_width / self.width)
        new_width, new_height = (
            max(round(self.width * scale), self.to_width),
            max(round(self.height * scale), self.to_height),
        )
        return new_width / self.width, new_height / self.height

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of what is kept of the resized picture."""
        scale_x, scale_y = self.scale
        return (round(self.width * scale_x) - self.to_width) // 2, (round(self.height * scale_y) - self.to_height) // 2

    def rgb(self, rgb: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return cutting.fitted(rgb, self.to_height, self.to_width)

    def intrinsics(self, intrinsics: Float64[np.ndarray, " 4"]) -> Float64[np.ndarray, " 4"]:
        (scale_x, scale_y), (left, top) = self.scale, self.corner
        return intrinsics * (scale_x, scale_y, scale_x, scale_y) - (0, 0, left, top)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Each pixel takes the value of the source pixel that its center falls on: for masks and ids."""
        if self.same:
            return values
        u, v = self._places()
        return np.ascontiguousarray(values[v.astype(int)[:, None], u.astype(int)])

    def depth(self, z: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
        """Bilinear in 1/z, which is exact on planes, where the four pixels around are one surface; else the nearest."""
        if self.same:
            return z
        inverse = 1 / np.where(z > 0, z, 1)
        smooth = 1 / self._bilinear(inverse)
        return np.where(self._one_surface(z), smooth, self.nearest(z)).astype(np.float32)

    def field(self, field: Field, z: Float32[np.ndarray, "H W"] | None, *, pixels: bool) -> Field:
        """Bilinear within a surface, else the nearest; `pixels` says that the vectors are lengths in the image."""
        if self.same:
            return field
        valid = self.nearest(field.valid)
        values = self.nearest(field.values)
        if z is not None:
            smooth = self._one_surface(z) & (self._bilinear(field.valid.astype(np.float32)) > 0.999)
            values = np.where(smooth[..., None], self._bilinear(field.values), values)
        if pixels:
            values = values * np.array(self.scale, np.float32)
        hidden = None if field.hidden is None else self.nearest(field.hidden)
        return Field(values=np.where(valid[..., None], values, 0).astype(np.float32), valid=valid, hidden=hidden)

    def _places(self) -> tuple[Float64[np.ndarray, " w"], Float64[np.ndarray, " h"]]:
        """Where the clip's pixel centers lie in the source."""
        (scale_x, scale_y), (left, top) = self.scale, self.corner
        height, width = self._size
        u = (np.arange(self.to_width) + 0.5 + left) / scale_x * (width / self.width)
        v = (np.arange(self.to_height) + 0.5 + top) / scale_y * (height / self.height)
        return np.clip(u, 0, width - 1e-6), np.clip(v, 0, height - 1e-6)

    def _bilinear(self, values: np.ndarray) -> np.ndarray:
        import cv2

        u, v = (np.float32(place - 0.5) for place in self._places())
        across, down = np.meshgrid(u, v)
        return cv2.remap(values, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _one_surface(self, z: Float32[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
        u, v = self._places()
        left, top = np.floor(u - 0.5).astype(int), np.floor(v - 0.5).astype(int)
        columns = np.clip(np.stack((left, left + 1)), 0, self._size[1] - 1)
        rows = np.clip(np.stack((top, top + 1)), 0, self._size[0] - 1)
        around = np.stack([z[row[:, None], column] for row in rows for column in columns])
        near, far = around.min(0), around.max(0)
        return (near > 0) & (far < _SAME_SURFACE * near)
