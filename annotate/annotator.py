"""The contracts of annotation: what a flow model is, and what fills a clip's slots.

Every annotator is a class of knobs with a `kind` tag, the resources it needs, and `load()`, which runs once in the worker, holds
the weights and returns a `FlowModel` (for flow) or an `Annotate` (for cameras, depth, motion). Adding one is a file and a line in
its union in `pipelines/recipes.py`.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from shared.clip import AnnotatedClip
from shared.knobs import Knobs


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFlow:
    """Flow from the first to the second frame of each pair, in pixels of the given images."""

    flow: Float32[np.ndarray, "N H W 2"]
    uncertainty: Float32[np.ndarray, "N H W"] | None = None


@runtime_checkable
class FlowModel(Protocol):
    """A loaded flow annotator: any pairs of frames of one clip in one call, so that it can share work between them."""

    source: str

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow: ...


@runtime_checkable
class Annotate(Protocol):
    """A loaded annotator: the clip with this annotator's slots filled. Slots that are filled already are kept (truth wins)."""

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip: ...


class Annotator(Knobs):
    """What every annotator declares. `gpus` is a fraction of one device; 0 runs on the CPU."""

    licence: ClassVar[str] = "Apache-2.0"
    """The terms that its code *and weights* bring to the labels; written into every clip's index row."""

    tries_small: ClassVar[bool] = True
    """False: a few small frames prove nothing about it; its `load()` says whether it works."""

    cpus: float = 1.0
    gpus: float = 0.0

    def check(self) -> None:
        """Called before any worker starts: raises ValueError, one sentence, for terms that are not accepted."""
