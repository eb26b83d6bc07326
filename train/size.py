"""The size of a training sample."""

from typing import Annotated

from pydantic import Field, model_validator

from shared.knobs import Knobs


class Size(Knobs):
    """What a clip is cut to. The video VAE asks for 8N+1 frames, its patches for sides that are multiples of 16."""

    frames: Annotated[int, Field(ge=9)] = 49
    height: Annotated[int, Field(ge=16)] = 480
    width: Annotated[int, Field(ge=16)] = 720

    @model_validator(mode="after")
    def _legal(self) -> "Size":
        legal = (round((self.frames - 1) / 8) * 8 + 1, round(self.height / 16) * 16, round(self.width / 16) * 16)
        if legal != (self.frames, self.height, self.width):
            nearest = "x".join(map(str, legal))
            raise ValueError(f"size {self}: expected 8N+1 frames and sides of 16M, the nearest is {nearest}")
        return self

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"
