"""One image and a prompt -> a clip with all that the paper lists: RGB, depth, points, cameras, flow, scene flow, a motion mask."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shared.clip import AnnotatedClip, Clip
from train import diffusion, latents, outputs, sample
from train.models import dit
from train.models.parts import Models
from train.noise import Noise

FPS = 8.0
"""The rate of the base model and of every clip it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How latents are drawn over `steps` trailing times, from pure noise at the last."""

    method: Literal["ddim", "dpm"] = "ddim"
    """ddim: deterministic. dpm: SDE-DPM-Solver++ (2M), which the base was published with; it draws noise at every step."""
    steps: int = 50
    guidance: float = 6.0
    """Constant, and on both latents; 1 saves half of the work."""
    seed: int = 0
    gate_scene_flow: bool = True
    """Scene flow is 0 where the mask says that nothing moves (equation 5); False leaves what the head says there."""


@torch.no_grad()
def generate(
    models: Models,
    image: UInt8[np.ndarray, "H W 3"],
    prompt: str,
    *,
    frames: int,
    height: int,
    width: int,
    steps: int = 50,
    guidance: float = 6.0,
    seed: int = 0,
) -> AnnotatedClip:
    """The clip that begins with `image` (resized to cover, center-cropped). The same arguments give the same clip.

    Lengths are in units of the scene: nothing here is metric. See `Sampler` for the last three.

    Raises ValueError if the size is not one of the model's.
    """
    sample.check_size(frames, height, width)
    sampler = Sampler(steps=steps, guidance=guidance, seed=seed)
    first = sample.image(image, height, width).to(models.device)
    z0 = denoise(models, first, prompt, frames, sampler)
    name = name_of(image, prompt, (frames, height, width), sampler)
    return decoded(models, z0, name, prompt, sampler)


def decoded(models: Models, z0: Float[Tensor, "1 F Z h w"], name: str, prompt: str, sampler: Sampler) -> AnnotatedClip:
    """Both videos and everything the decoder says of clean latents."""
    rgb = latents.decode(models.vae, z0[:, :, : dit.CHANNELS])[0]
    geometry = latents.decode(models.vae, z0[:, :, dit.CHANNELS :])[0] if dit.has_geometry(models.dit) else None
    predicted = models.dpt(z0[:, :, : dit.CHANNELS] if models.dpt.knobs.reads == "rgb" else z0[:, :, dit.CHANNELS :])
    clip = Clip(
        id=name,
        rgb=((rgb.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy(),
        fps=FPS,
        source="generated",
        frames=np.arange(len(rgb)),
        caption=prompt,
    )
    return outputs.annotated(
        clip,
        predicted,
        geometry,
        min_flow_diagonals=models.knobs.latent.min_flow_diagonals,
        gate_scene_flow=sampler.gate_scene_flow,
    )


def denoise(
    models: Models,
    first: Float[Tensor, "H W 3"],
    prompt: str,
    frames: int,
    sampler: Sampler,
    known: Float[Tensor, "1 M Z h w"] | None = None,
) -> Float[Tensor, "1 F Z h w"]:
    """Clean latents of a clip that begins with `first`. `known` latents of its first frames, if any, are held to."""
    noise = Noise(seed=sampler.seed, positions=(0,))
    num_latent, cells = (frames - 1) // 4 + 1, (first.shape[0] // 8, first.shape[1] // 8)
    xt = start = noise.normal("start", (num_latent, models.dit.config.out_channels, *cells), first)
    condition = latents.image_condition(models.vae, first[None], num_latent, noise, blur=False)
    prompts = [prompt] if sampler.guidance == 1 else [prompt, ""]
    text = models.text(prompts).to(first.device)
    condition = condition.expand(len(prompts), -1, -1, -1, -1)
    times = diffusion.trailing(sampler.steps, len(models.alpha_bar)).tolist()
    before = None
    for t, t_next in zip(times, [*times[1:], None]):
        a = models.alpha_bar[t : t + 1].to(first.device)
        a_next = torch.ones_like(a) if t_next is None else models.alpha_bar[t_next : t_next + 1].to(first.device)
        xt = _hold(xt, known, start, a)
        both = xt.expand(len(prompts), -1, -1, -1, -1)
        v = dit.predict(models.dit, both, condition, text, torch.full((len(prompts),), t, device=first.device))
        v = diffusion.guided(v[:1], v[-1:], sampler.guidance)
        if sampler.method == "ddim":
            xt = diffusion.ddim(xt, v, a, a_next)
        else:
            x0, fresh = diffusion.x0_of(xt, v, a), noise.normal(f"step {t}", tuple(xt.shape[1:]), xt)
            xt, before = diffusion.dpm(xt, x0, a, a_next, fresh, before), (x0, a)
    return _hold(xt, known, start, torch.ones_like(models.alpha_bar[:1]).to(first.device))


def _hold(
    xt: Float[Tensor, "1 F Z h w"],
    known: Float[Tensor, "1 M Z h w"] | None,
    start: Float[Tensor, "1 F Z h w"],
    a: Float[Tensor, " 1"],
) -> Float[Tensor, "1 F Z h w"]:
    """The known latents, as noisy as the others are, in the first places."""
    if known is None:
        return xt
    num = known.shape[1]
    return torch.cat((diffusion.noised(known, start[:, :num], a), xt[:, num:]), dim=1)


def name_of(image: np.ndarray, prompt: str, size: tuple[int, ...], sampler: Sampler) -> str:
    """A clip's id: the same for the same image, prompt, size and sampler."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=12)
    digest.update(f"{image.shape}/{prompt}/{size}/{sampler}".encode())
    return digest.hexdigest()
