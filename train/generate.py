"""One image and a prompt -> a clip with all that the paper lists: RGB, depth, points, cameras, flow, scene flow, a motion mask."""

import hashlib

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

    Deterministic DDIM over `steps` trailing times, from pure noise at the last. `guidance` is constant and acts on both latents;
    1 saves half of the work. Lengths are in units of the scene: nothing here is metric.

    Raises ValueError if the size is not one of the model's.
    """
    sample.check_size(frames, height, width)
    first = sample.image(image, height, width).to(models.device)
    noise = Noise(seed=seed, positions=(0,))
    z0 = _denoise(models, first, prompt, frames, noise, steps=steps, guidance=guidance)
    rgb = latents.decode(models.vae, z0[:, :, : dit.CHANNELS])[0]
    geometry = latents.decode(models.vae, z0[:, :, dit.CHANNELS :])[0] if dit.has_geometry(models.dit) else None
    predicted = models.dpt(z0[:, :, : dit.CHANNELS] if models.dpt.knobs.reads == "rgb" else z0[:, :, dit.CHANNELS :])
    clip = Clip(
        id=_name(image, prompt, seed, (frames, height, width), (float(steps), guidance)),
        rgb=((rgb.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy(),
        fps=FPS,
        source="generated",
        frames=np.arange(frames),
        caption=prompt,
    )
    return outputs.annotated(clip, predicted, geometry, min_flow_diagonals=models.knobs.latent.min_flow_diagonals)


def _denoise(
    models: Models,
    first: Float[Tensor, "H W 3"],
    prompt: str,
    frames: int,
    noise: Noise,
    *,
    steps: int,
    guidance: float,
) -> Float[Tensor, "1 F Z h w"]:
    """The clean latents."""
    num_latent, cells = (frames - 1) // 4 + 1, (first.shape[0] // 8, first.shape[1] // 8)
    xt = noise.normal("start", (num_latent, models.dit.config.out_channels, *cells), first)
    condition = latents.image_condition(models.vae, first[None], num_latent, noise, blur=False)
    prompts = [prompt] if guidance == 1 else [prompt, ""]
    text = models.text(prompts).to(first.device)
    condition = condition.expand(len(prompts), -1, -1, -1, -1)
    times = diffusion.trailing(steps, len(models.alpha_bar)).tolist()
    for t, t_next in zip(times, [*times[1:], None]):
        a = models.alpha_bar[t : t + 1].to(first.device)
        a_next = torch.ones_like(a) if t_next is None else models.alpha_bar[t_next : t_next + 1].to(first.device)
        both = xt.expand(len(prompts), -1, -1, -1, -1)
        v = dit.predict(models.dit, both, condition, text, torch.full((len(prompts),), t, device=first.device))
        xt = diffusion.ddim(xt, diffusion.guided(v[:1], v[-1:], guidance), a, a_next)
    return xt


def _name(image: np.ndarray, prompt: str, seed: int, size: tuple[int, ...], sampler: tuple[float, ...]) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=12)
    digest.update(f"{image.shape}/{prompt}/{seed}/{size}/{sampler}".encode())
    return digest.hexdigest()
