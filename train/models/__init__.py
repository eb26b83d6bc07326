"""What a WorldReel model is made of: the knobs. `build` and `load` make the `Models` of `train.models.parts`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.knobs import Knobs

if TYPE_CHECKING:
    from train.models.parts import Models
else:
    Models = Any  # torch stays unloaded until a model is built

Count = Annotated[int, Field(ge=1)]


class DecoderKnobs(Knobs):
    """Size of the temporal DPT; the defaults are the paper-scale choice."""

    width: Count = 768
    depth: Count = 12
    """Transformer blocks, attending within a frame and over all frames in turn."""
    num_heads: Count = 12
    taps: tuple[int, int, int, int] = (2, 5, 8, 11)
    """Blocks whose output feeds the pyramid, from its finest level to its coarsest."""
    features: Count = 256
    levels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    temporal_heads: Count = 8
    head_features: Count = 32
    reads: Literal["geometry", "rgb"] = "geometry"
    """Which latent it decodes; `rgb` is the arm without a geometry-motion latent."""

    @model_validator(mode="after")
    def _agree(self) -> "DecoderKnobs":
        if self.width % self.num_heads or self.features % self.temporal_heads:
            raise ValueError("width must divide by num_heads, and features by temporal_heads")
        if max(self.taps) >= self.depth:
            raise ValueError(f"taps {self.taps} ask for {max(self.taps) + 1} blocks, there are {self.depth}")
        return self


SIZES = {
    "tiny": DecoderKnobs(
        width=32,
        depth=4,
        num_heads=2,
        taps=(0, 1, 2, 3),
        features=16,
        levels=(16, 16, 32, 32),
        temporal_heads=2,
        head_features=8,
    ),
    "small": DecoderKnobs(
        width=128,
        depth=6,
        num_heads=4,
        taps=(1, 2, 4, 5),
        features=48,
        levels=(32, 48, 64, 64),
        temporal_heads=4,
        head_features=16,
    ),
    "medium": DecoderKnobs(
        width=256,
        depth=8,
        num_heads=8,
        taps=(1, 3, 5, 7),
        features=96,
        levels=(64, 96, 128, 128),
        temporal_heads=8,
        head_features=24,
    ),
    "paper": DecoderKnobs(),
}


class LatentKnobs(Knobs):
    """How depth and flow become a video in -1..1, per clip."""

    depth_low: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Quantile of valid depth that becomes -1."""
    depth_high: Annotated[float, Field(ge=0, le=1)] = 0.98
    flow_high: Annotated[float, Field(gt=0, le=1)] = 0.999
    """Quantile of the larger flow component that becomes 1."""
    min_flow_diagonals: Annotated[float, Field(gt=0)] = 0.01
    """The range of flow is at least this part of the image's diagonal: still clips must not amplify noise."""


class TextKnobs(Knobs):
    """What reads the captions."""

    kind: Literal["t5", "bytes", "cached"] = "t5"
    """`t5`: the base's own encoder. `bytes`: a small encoder of bytes that needs no file. `cached`: embeddings from `folder`."""
    length: Count = 226
    """Tokens; padding is part of the input and is never masked."""
    width: Count = 32
    """Of the `bytes` encoder."""
    folder: str = ""
    """Of the `cached` embeddings, written by `train.latents.cache_text`."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class ModelKnobs(Knobs):
    """A WorldReel model: its base, what widens it, its decoder."""

    base: str = "tiny"
    """`tiny`, `small` and `medium` need no file: random weights behind a VAE that averages blocks. Else a folder or a name on the
    hub, in the diffusers layout: THUDM/CogVideoX-5b-I2V."""
    geometry_latent: bool = True
    """Denoise depth and flow beside RGB. False: the arm without a geometry-motion latent."""
    geometry_rows: Literal["zero", "copy"] = "zero"
    """Output rows of the geometry latent at the start."""
    learned_positions: Literal["drop", "keep"] = "drop"
    """`keep` holds the base to its one size, 49x480x720."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0 trains all weights of the transformer; above, only adapters of this rank on its attention and the widened layers."""
    decoder: DecoderKnobs | Literal["tiny", "small", "medium", "paper"] = "tiny"
    text: TextKnobs = TextKnobs(kind="bytes", length=16, dtype="float32")
    latent: LatentKnobs = LatentKnobs()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the transformer's and the decoder's stored weights; computing in half precision is the trainer's business."""
    seed: int = 0
    """Of every random weight."""

    @property
    def decoder_knobs(self) -> DecoderKnobs:
        """With its size's name resolved, reading what the model has."""
        size = SIZES[self.decoder] if isinstance(self.decoder, str) else self.decoder
        return size if self.geometry_latent else size.model_copy(update={"reads": "rgb"})


PAPER = ModelKnobs(base="THUDM/CogVideoX-5b-I2V", decoder="paper", text=TextKnobs())
"""The paper's model."""


def build(knobs: ModelKnobs) -> Models:
    """The model at its start: base weights, widened, with a decoder from scratch. Same knobs, same weights."""
    from train.models import parts

    return parts.build(knobs)


def load(folder: str | Path) -> Models:
    """A model as `Models.save` wrote it. Raises ValueError for a folder that holds none."""
    from train.models import parts

    return parts.load(Path(folder))
