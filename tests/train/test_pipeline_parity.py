"""Our sampler, on an unwidened model, against diffusers' whole image-to-video pipeline with the same weights and noise."""

import numpy as np
import scene
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from PIL import Image

from train import latents, models, sample
from train.generate import Sampler, denoise
from train.models import ModelKnobs
from train.noise import Noise


def test_sampling_equals_the_pipeline(tmp_path):
    built = models.build(ModelKnobs(geometry_latent=False, seed=7))
    built.vae.encoder.conv_out.conv.bias.data[16:] = -60.0  # a posterior without spread: both draw the mean
    built.save(tmp_path)
    assert isinstance(built.text, latents.T5)
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=built.text.tokenizer,
        text_encoder=built.text.encoder,
        vae=built.vae,
        transformer=built.dit,
        scheduler=CogVideoXDDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler"),
    )
    pipeline.set_progress_bar_config(disable=True)
    rgb = scene.tiny("orbit").rgb[0]
    start = Noise(seed=5, positions=(0,)).normal("start", (3, 16, 6, 8), torch.zeros(()))
    theirs = pipeline(
        image=Image.fromarray(rgb),
        prompt="a room",
        height=48,
        width=64,
        num_frames=9,
        num_inference_steps=5,
        guidance_scale=3.0,
        latents=start,
        max_sequence_length=16,
        output_type="latent",
    ).frames
    first = sample.image(rgb, 48, 64)
    ours = denoise(built, first, "a room", 9, Sampler(steps=5, guidance=3.0, seed=5))
    assert np.abs((ours - theirs).detach().numpy()).max() < 1e-3
    other = denoise(built, first, "a house", 9, Sampler(steps=5, guidance=3.0, seed=5))
    assert (other - ours).abs().max() > 1e-2
