"""The size of a training sample."""

from typing import Annotated

from pydantic import Field, model_validator

from shared.knobs import Knobs


def nearest(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """The legal size closest to this one, the larger of two."""
    return max(1, (frames + 3) // 8) * 8 + 1, max(1, (height + 8) // 16) * 16, max(1, (width + 8) // 16) * 16


class Size(Knobs):
    """What a clip is cut to. The video VAE asks for 8N+1 frames, its patches for sides that are multiples of 16."""

    frames: Annotated[int, Field(ge=9)] = 49
    height: Annotated[int, Field(ge=16)] = 480
    width: Annotated[int, Field(ge=16)] = 720

    @model_validator(mode="after")
    def _legal(self) -> "Size":
        legal = nearest(self.frames, self.height, self.width)
        if legal != (self.frames, self.height, self.width):
            shown = "x".join(map(str, legal))
            raise ValueError(f"size {self}: expected 8N+1 frames and sides of 16M, the nearest is {shown}")
        return self

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"
