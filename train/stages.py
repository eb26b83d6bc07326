"""The stages of training: which losses, which weights move, which labels they read; and the paper's ablation arms.

A stage is a value. `stage.loss(models, batch, noise)` is all a training loop calls: it gives every loss as one number, and `total`
to differentiate. A mean over the batch is Σ weight · loss / Σ weight, so a sample of weight 0 contributes exactly nothing.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from shared.knobs import Knobs
from train.losses import Decoding, Regularizing, SelfSupervision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.models.parts import Models
    from train.noise import Noise
    from train.sample import Batch

    Modules = dict[str, nn.Module]
    Losses = dict[str, Tensor]
else:
    Tensor = Models = Noise = Batch = Any  # torch stays unloaded until a stage runs
    Modules = Losses = dict

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

LATENT = frozenset({"rgb", "depth", "flow.forward", "motion.sky"})
"""Parts of a clip that the latents are made of."""
LABELS = LATENT | {
    "points",
    "cameras",
    "motion.dynamic",
    "motion.key_scene_flow",
    "motion.key_scene_flow_valid",
}
"""And those that the decoder is held against."""
KEY_LABELS = LABELS - {"rgb", "flow.forward"}
"""Of these, what is still read where the latents are known."""


class Generator(Knobs):
    """1a. The transformer learns to denoise both latents: L_diff (equation 1)."""

    kind: Literal["generator"] = "generator"
    caption_dropout: Share = 0.1
    image_dropout: Share = 0.05

    @property
    def parts(self) -> frozenset[str]:
        return LATENT

    @property
    def parts_beside_latents(self) -> frozenset[str]:
        return frozenset()

    def trainable(self, models: Models) -> Modules:
        from train.models import lora

        return {"dit": lora.trainable(models.dit)}

    def loss(self, models: Models, batch: Batch, noise: Noise, total_weight: Tensor | None = None) -> Losses:
        """`total_weight` divides the weighted sum: None takes the batch's Σ weight; of W ranks, each passes the Σ of all over W."""
        from train import objectives

        return objectives.generator(self, models, batch, noise, total_weight)


class Decoder(Knobs):
    """1b. The decoder learns geometry and motion from clean latents: L_dpt (equation 2)."""

    kind: Literal["decoder"] = "decoder"
    decoding: Decoding = Decoding()

    @property
    def parts(self) -> frozenset[str]:
        return LABELS

    @property
    def parts_beside_latents(self) -> frozenset[str]:
        return KEY_LABELS

    def trainable(self, models: Models) -> Modules:
        return {"dpt": models.dpt}

    def loss(self, models: Models, batch: Batch, noise: Noise, total_weight: Tensor | None = None) -> Losses:
        from train import objectives

        return objectives.decoder(self, models, batch, total_weight)


class Joint(Knobs):
    """2. Both end to end: L = L_diff + 0.1 L_dpt + 0.5 L_reg (equation 4), the decoder reading the predicted clean latent."""

    kind: Literal["joint"] = "joint"
    caption_dropout: Share = 0.1
    image_dropout: Share = 0.05
    decoding: Decoding = Decoding()
    regularizing: Regularizing = Regularizing()
    dpt_weight: Weight = 0.1
    reg_weight: Weight = 0.5
    """Both as in the paper. With means in place of its sums L_reg pulls a pixel's depth five times as hard as L_depth does: a
    small, soft decoder gives in (docs/ablation.md)."""
    weigh_by_signal: bool = True
    """Weigh both by alpha_bar: at high noise the predicted latent is a blurred mean, and its geometry means nothing."""
    freeze_backbone: bool = False
    """As the paper freezes its DPT: the heads still learn, and gradients still reach the transformer."""

    @property
    def parts(self) -> frozenset[str]:
        return LABELS

    @property
    def parts_beside_latents(self) -> frozenset[str]:
        return KEY_LABELS

    def trainable(self, models: Models) -> Modules:
        from train.models import lora

        decoder = {"dpt.heads": models.dpt.heads} if self.freeze_backbone else {"dpt": models.dpt}
        return {"dit": lora.trainable(models.dit)} | decoder

    def loss(self, models: Models, batch: Batch, noise: Noise, total_weight: Tensor | None = None) -> Losses:
        from train import objectives

        return objectives.joint(self, models, batch, noise, total_weight)


class SelfSupervised(Knobs):
    """The decoder from video alone: optical flow and what it says moves, no label of depth, points, camera or scene flow."""

    kind: Literal["self_supervised"] = "self_supervised"
    supervision: SelfSupervision = SelfSupervision()

    @property
    def parts(self) -> frozenset[str]:
        return LATENT | self.parts_beside_latents

    @property
    def parts_beside_latents(self) -> frozenset[str]:
        return frozenset({"cameras", "key_flow", "motion.dynamic"})

    def trainable(self, models: Models) -> Modules:
        return {"dpt": models.dpt}

    def loss(self, models: Models, batch: Batch, noise: Noise, total_weight: Tensor | None = None) -> Losses:
        from train import objectives

        return objectives.self_supervised(self, models, batch, total_weight)


STAGES = Annotated[Generator | Decoder | Joint | SelfSupervised, Field(discriminator="kind")]
"""Choose one by its `kind`."""


class Arm(Knobs):
    """A model and the stages it goes through: one row of the ablation. Knobs of a stage that are not given are the recipe's."""

    geometry_latent: bool = True
    stages: tuple[STAGES, ...] = (Generator(), Decoder(), Joint())


ARMS = {
    "full": Arm(),
    "base_finetuned": Arm(geometry_latent=False, stages=(Generator(),)),
    "without_geometry_latent": Arm(geometry_latent=False),
    "without_joint": Arm(stages=(Generator(), Decoder())),
    "frozen_backbone": Arm(stages=(Generator(), Decoder(), Joint(freeze_backbone=True))),
    "self_supervised": Arm(stages=(Generator(), SelfSupervised())),
    **{
        f"reg_weight_{weight:g}": Arm(stages=(Generator(), Decoder(), Joint(reg_weight=weight)))
        for weight in (0.0, 0.05, 0.5, 5.0)
    },
}
"""The paper's arms, the sweep of its regularizers, and its first open question."""
