"""What each stage minimizes: one function a stage, from a batch to its losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train import diffusion, latents
from train.losses import diffusion as diffusion_loss
from train.losses import terms
from train.models import dit
from train.models.parts import Models
from train.noise import Noise
from train.sample import Batch, sent, unit
from train.stages import Decoder, Generator, Joint, SelfSupervised

Losses = dict[str, Tensor]


def generator(stage: Generator, models: Models, batch: Batch, noise: Noise, total_weight: Tensor | None) -> Losses:
    """L_diff."""
    denoised = denoise(stage, models, batch, noise)
    return _means(denoised.terms, _sum(denoised.terms), batch, total_weight)


def decoder(stage: Decoder, models: Models, batch: Batch, total_weight: Tensor | None) -> Losses:
    """L_dpt on the mean of the clean latent."""
    predicted = models.dpt(clean(models, batch))
    found = terms.decoding(stage.decoding, predicted, batch)
    return _means(found, terms.weighted(stage.decoding, found), batch, total_weight)


def joint(stage: Joint, models: Models, batch: Batch, noise: Noise, total_weight: Tensor | None) -> Losses:
    """L_diff + ᾱ_t (λ_dpt L_dpt + λ_reg L_reg), decoded from the predicted clean latent."""
    denoised = denoise(stage, models, batch, noise)
    predicted = models.dpt(readable(models, denoised.x0))
    decoded = terms.decoding(stage.decoding, predicted, batch)
    regular = terms.regularizing(stage.regularizing, predicted, batch, noise)
    signal = denoised.signal if stage.weigh_by_signal else torch.ones_like(denoised.signal)
    geometry = torch.zeros_like(signal)
    if decoded:
        geometry = geometry + stage.dpt_weight * terms.weighted(stage.decoding, decoded)
    if regular:
        geometry = geometry + stage.reg_weight * terms.weighted(stage.regularizing, regular)
    total = _sum(denoised.terms) + signal * geometry
    return _means(denoised.terms | decoded | regular, total, batch, total_weight)


def self_supervised(stage: SelfSupervised, models: Models, batch: Batch, total_weight: Tensor | None) -> Losses:
    """What flow says of the decoded clean latent."""
    predicted = models.dpt(clean(models, batch))
    found = terms.self_supervising(stage.supervision, predicted, batch)
    return _means(found, terms.weighted(stage.supervision, found), batch, total_weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    """One step of denoising: its losses, what it takes the clean latents to be, and the share of signal it saw."""

    terms: Losses
    x0: Float[Tensor, "B F Z h w"]
    signal: Float[Tensor, " B"]


def denoise(stage: Generator | Joint, models: Models, batch: Batch, noise: Noise) -> Denoised:
    """Independent noise on both latents, at one time drawn uniformly for each sample."""
    x0 = _drawn(models, batch, noise)
    t = noise.integers("time", len(models.alpha_bar), (), x0)
    signal = sent(models.alpha_bar, x0.device)[t]
    eps = noise.normal("diffusion", tuple(x0.shape[1:]), x0)
    xt, target = diffusion.noised(x0, eps, signal), diffusion.velocity(x0, eps, signal)
    image = latents.image_condition(
        models.vae, unit(batch.rgb[:, 0]), x0.shape[1], noise, blur=True, dropout=stage.image_dropout
    )
    here = torch.empty(0)  # the draw decides what the text encoder is given: it must not wait for a device
    text = models.text(_captions(batch.captions, noise.uniform("caption_dropout", here), stage.caption_dropout))
    v = dit.predict(models.dit, xt, image, sent(text, x0.device), t)
    found = {"diffusion_rgb": diffusion_loss.loss(v[:, :, : dit.CHANNELS], target[:, :, : dit.CHANNELS])}
    if dit.has_geometry(models.dit):
        geometry = diffusion_loss.loss(v[:, :, dit.CHANNELS :], target[:, :, dit.CHANNELS :])
        found["diffusion_geometry"] = geometry * (batch.has_depth & batch.has_flow)
    return Denoised(terms=found, x0=diffusion.x0_of(xt, v, signal), signal=signal.to(x0.dtype))


def _drawn(models: Models, batch: Batch, noise: Noise) -> Float[Tensor, "B F Z h w"]:
    """A sample of the posterior of every latent the transformer denoises."""
    both = models.latents(batch)
    rgb = both.rgb.sample(noise, "rgb_posterior")
    if not dit.has_geometry(models.dit):
        return rgb
    return torch.cat((rgb, both.geometry.sample(noise, "geometry_posterior")), dim=2)


def clean(models: Models, batch: Batch) -> Float[Tensor, "B F C h w"]:
    """The mean of the latent that the decoder reads."""
    both = models.latents(batch)
    return both.rgb.mean if models.dpt.knobs.reads == "rgb" else both.geometry.mean


def readable(models: Models, x0: Float[Tensor, "B F Z h w"]) -> Float[Tensor, "B F C h w"]:
    return x0[:, :, : dit.CHANNELS] if models.dpt.knobs.reads == "rgb" else x0[:, :, dit.CHANNELS :]


def _captions(captions: Sequence[str], drawn: Float[Tensor, " B"], dropout: float) -> list[str]:
    return ["" if value < dropout else caption for caption, value in zip(captions, drawn.tolist())]


def _sum(found: Losses) -> Float[Tensor, " B"]:
    return torch.stack(list(found.values())).sum(0)


def _means(found: Losses, total: Float[Tensor, " B"], batch: Batch, total_weight: Tensor | None) -> Losses:
    """Each loss as Σ weight · loss / `total_weight`.

    Nothing is asked of the numbers here, which would stop a GPU in the middle of its step. A `total` that is not finite is
    multiplied by nan instead, so that no gradient of it can be finite either, and the step refuses its gradient by name.
    """
    named = found | {"total": total}
    each = torch.stack([value.float() for value in named.values()])
    whole = batch.weight.sum() if total_weight is None else total_weight
    means = (each * batch.weight).sum(1) / torch.where(whole > 0, whole, torch.ones_like(whole))
    losses = dict(zip(named, means))
    return losses | {"total": losses["total"] * (1 + 0 * losses["total"].detach())}
