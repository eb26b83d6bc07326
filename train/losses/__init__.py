"""The losses and their weights. Each file holds one equation; `train.losses.terms` adds them up.

Every loss is one number a sample, a mean over that sample's valid pixels: it does not depend on the resolution, on neighbors in the
batch, or on the number of ranks. A sample that lacks what a loss needs contributes exactly 0 to it.
"""

from typing import Annotated

from pydantic import Field

from shared.knobs import Knobs

Weight = Annotated[float, Field(ge=0)]


class Term(Knobs):
    """A loss that has nothing to tune but its weight."""

    weight: Weight = 1.0


class CamerasTerm(Term):
    huber_delta: Annotated[float, Field(gt=0)] = 0.1
    """Of nine numbers whose differences are far below 1: with 1 the loss would always be quadratic."""


class SceneFlowTerm(Term):
    weight: Weight = 5.0
    foreground: Weight = 9.0
    """A moving pixel counts 1 + this."""


class DepthConsistencyTerm(Term):
    num_random_pairs: Annotated[int, Field(ge=0)] = 8
    """Beside the neighbors, per clip."""
    max_depth_gap: Annotated[float, Field(gt=0)] = 0.05
    """Two label depths that differ by more, relatively, are not the same surface."""


class ReprojectionTerm(Term):
    huber_delta_diagonals: Annotated[float, Field(gt=0)] = 0.005
    """Flow disagreement beyond this part of the image's diagonal counts linearly."""


class Decoding(Knobs):
    """L_dpt = L_depth + L_pc + L_cam + L_mask + 5 L_flow (equation 2). None leaves a loss out."""

    depth: Term | None = Term()
    points: Term | None = Term()
    cameras: CamerasTerm | None = CamerasTerm()
    mask: Term | None = Term()
    scene_flow: SceneFlowTerm | None = SceneFlowTerm()


class Regularizing(Knobs):
    """L_reg = L_reg(depth) + L_reg(flow) (equation 3)."""

    depth_consistency: DepthConsistencyTerm | None = DepthConsistencyTerm()
    smooth_flow: Term | None = Term()


class SelfSupervision(Knobs):
    """What video alone can teach: no depth, point or scene-flow label is read, only optical flow and what it says moves."""

    reprojection: ReprojectionTerm | None = ReprojectionTerm()
    """Camera and depth explain the flow of what is static; scene flow the rest."""
    static_depth: Term | None = Term()
    """Matched static pixels lie at one place."""
    agreement: Term | None = Term()
    """Points are the depth, lifted; what is static has no scene flow; the mean distance is 1."""
    mask: Term | None = Term()
    smooth_flow: Term | None = Term()
