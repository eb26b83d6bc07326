"""The hand-set VAE is the average it claims to be, and carries depth and flow."""

import examples
import pytest
import scene
import torch
from torch.nn import functional as F

from train import latents, sample
from train.models import LatentKnobs, pooling


def test_the_latent_is_the_average_of_blocks():
    vae = examples.built().vae
    video = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = vae.encode(video).latent_dist.mean[:, : pooling.SIGNALS] / pooling.GAIN
    after_first = F.avg_pool3d(video[:, :, 1:], 4)
    blocks = torch.cat((F.avg_pool3d(video[:, :, :1], (1, 4, 4)), after_first), dim=2)
    quarters = blocks.unflatten(-1, (6, 2)).unflatten(-3, (4, 2)).permute(0, 1, 4, 6, 2, 3, 5)
    assert torch.allclose(mean, quarters.flatten(1, 3), atol=0.01)


def test_what_does_not_vary_comes_back():
    vae = examples.built().vae
    video = torch.tensor([0.5, -0.8, 0.2])[None, :, None, None, None].expand(1, 3, 9, 48, 64)
    again = vae.decode(vae.encode(video).latent_dist.mean).sample
    assert (again - video)[..., 4:-4, 4:-4].abs().max() < 0.02


@pytest.mark.parametrize("kind", ["orbit", "many_moving"])
def test_depth_and_flow_survive_the_round_trip(kind, capsys):
    clip = scene.clip(kind, frames=9, height=96, width=128, focal=120.0)
    batch, vae = sample.collate([sample.from_clip(clip, 9, 96, 128)]), examples.built().vae
    video, ranges = latents.geometry_video(batch, LatentKnobs())
    depth, flow = latents.depth_and_flow(latents.decode(vae, latents.encode(vae, video).mean), ranges)
    relative = ((depth - batch.depth).abs() / batch.depth).mean().item()
    off = (flow - batch.flow).norm(dim=-1).mean().item()
    with capsys.disabled():
        print(f"\nround trip of {kind}: depth AbsRel {relative:.3f}, flow EPE {off:.3f} px")
    assert relative < 0.12
    assert off < 0.4 * batch.flow.norm(dim=-1).mean().item()


def test_it_can_still_learn():
    vae = pooling.start(examples.built().vae.__class__.from_config(examples.built().vae.config))
    video = torch.rand(1, 3, 9, 16, 16)
    vae.decode(vae.encode(video).latent_dist.mean).sample.square().mean().backward()
    branches = [value for name, value in vae.named_parameters() if name.endswith("conv2.conv.weight")]
    assert all(value.grad.abs().max() > 0 for value in branches)
