"""The geometry video and its way through the VAE; captions; the cache."""

from dataclasses import replace

import examples
import pytest
import torch

from train import evaluate, latents, sample
from train.models import LatentKnobs, dit
from train.noise import Noise

KNOBS = LatentKnobs()


def _noise(size: int) -> Noise:
    return Noise(seed=0, positions=tuple(range(size)))


def test_depth_and_flow_fill_the_range_as_the_formula_says():
    batch = examples.batch("orbit")
    depth = torch.linspace(1, 2, batch.depth.numel()).reshape(batch.depth.shape)
    flow = torch.zeros_like(batch.flow)
    flow[..., 0], flow[..., 1] = 4.0, -2.0
    video, ranges = latents.geometry_video(replace(batch, depth=depth, flow=flow), KNOBS)
    assert ranges.depth_min.item() == pytest.approx(1.02, abs=1e-3)
    assert ranges.depth_max.item() == pytest.approx(1.98, abs=1e-3)
    assert ranges.flow_max.item() == 4
    expected = (2 * (depth - 1.02) / 0.96 - 1).clamp(-1, 1)
    assert torch.allclose(video[..., 0], expected, atol=2e-3)
    assert (video[..., 1] == 1).all()
    assert (video[..., 2] == -0.5).all()


def test_the_sky_is_far_away_and_the_last_flow_repeats():
    batch = examples.batch("orbit")
    valid = batch.depth_valid.clone()
    valid[:, :, :10] = False
    video, _ = latents.geometry_video(replace(batch, depth_valid=valid), KNOBS)
    assert (video[:, :, :10, :, 0] == 1).all()
    assert torch.equal(video[:, -1, ..., 1:], video[:, -2, ..., 1:])


def test_a_still_clip_does_not_amplify_noise():
    batch = examples.batch("static")
    still = replace(batch, flow=torch.full_like(batch.flow, 1e-3))
    video, ranges = latents.geometry_video(still, KNOBS)
    assert ranges.flow_max.item() == pytest.approx(0.01 * (48**2 + 64**2) ** 0.5)
    assert video[..., 1:].abs().max() < 0.01


def test_the_geometry_video_can_be_undone_within_its_range():
    batch = examples.batch("orbit", "handheld")
    video, ranges = latents.geometry_video(batch, KNOBS)
    depth, flow = latents.depth_and_flow(video, ranges)
    inside = video[..., 0].abs() < 1
    assert inside.float().mean() > 0.9
    assert torch.allclose(depth[inside], batch.depth[inside], rtol=1e-5)
    assert (flow - batch.flow).abs().max() < 0.1 * ranges.flow_max.max()
    assert (flow - batch.flow).abs().mean() < 1e-3


def test_scale_and_shift_of_depth_do_not_reach_the_latent():
    batch = examples.batch("orbit")
    other = replace(batch, depth=3 * batch.depth + 2)
    assert torch.allclose(latents.geometry_video(batch, KNOBS)[0], latents.geometry_video(other, KNOBS)[0], atol=1e-5)


def test_without_any_depth_everything_stays_finite():
    empty = sample.collate([sample.placeholder(9, 48, 64, id="torn")])
    video, ranges = latents.geometry_video(empty, KNOBS)
    assert torch.isfinite(video).all()
    assert (video[..., 0] == 1).all()
    assert (ranges.depth_max > ranges.depth_min).all()


def test_latents_have_the_transformers_shape_and_scale():
    models, batch = examples.built(), examples.batch("orbit")
    moments = latents.encode(models.vae, sample.unit(batch.rgb))
    assert moments.mean.shape == (1, 3, 16, 6, 8)
    raw = models.vae.encode(sample.unit(batch.rgb).permute(0, 4, 1, 2, 3)).latent_dist
    assert torch.allclose(moments.mean, 0.7 * raw.mean.transpose(1, 2))
    assert torch.allclose(moments.std, 0.7 * raw.std.transpose(1, 2))
    assert latents.decode(models.vae, moments.mean).shape == batch.rgb.shape


@pytest.mark.parametrize("frames", [9, 17])
def test_no_frame_is_padded(frames):
    """8N + 1 frames are 2N + 1 latent frames, and the transformer gives back as many."""
    models, batch = examples.built(), examples.batch("orbit")
    video = sample.unit(batch.rgb)[:, :1].expand(-1, frames, -1, -1, -1)
    latent = latents.encode(models.vae, video).mean
    assert latent.shape[1] == (frames - 1) // 4 + 1
    seen = []
    models.dit.patch_embed.register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens.shape[1]))
    both, image = torch.cat((latent, latent), dim=2), torch.zeros_like(latent)
    found = dit.predict(models.dit, both, image, models.text(["a room"]), torch.tensor([500]))
    assert found.shape == both.shape
    num_text, patches = 16, latent.shape[3] * latent.shape[4] // 4
    assert seen == [num_text + latent.shape[1] * patches]


def test_the_image_conditions_the_first_latent_frame_alone():
    models, batch = examples.built(), examples.batch("orbit", "lateral")
    image = sample.unit(batch.rgb[:, 0])
    plain = latents.image_condition(models.vae, image, 3, _noise(2), blur=False)
    assert plain.shape == (2, 3, 16, 6, 8)
    assert plain[:, 0].abs().max() > 0
    assert not plain[:, 1:].any()
    blurred = latents.image_condition(models.vae, image, 3, _noise(2), blur=True)
    assert (blurred - plain).abs().max() > 0
    assert not latents.image_condition(models.vae, image, 3, _noise(2), blur=False, dropout=1.0).any()


def test_image_noise_belongs_to_the_sample():
    models, batch = examples.built(), examples.batch("orbit", "lateral")
    together = latents.image_condition(
        models.vae, sample.unit(batch.rgb[:, 0]), 3, Noise(seed=0, positions=(5, 9)), blur=True
    )
    alone = latents.image_condition(
        models.vae, sample.unit(batch.rgb[1:, 0]), 3, Noise(seed=0, positions=(9,)), blur=True
    )
    assert torch.allclose(together[1], alone[0], atol=1e-5)


def test_captions_keep_all_tokens_and_padding_counts():
    text = examples.built().text
    found = text(["a room", ""])
    assert found.shape == (2, 16, 32)
    assert torch.equal(text(["a room"])[0], found[0])
    assert (found[0] - found[1]).abs().max() > 0
    assert isinstance(text, latents.TextEncoder)


def test_cached_captions_equal_live_ones(tmp_path):
    live = examples.built().text
    latents.cache_text(live, ["a room"], tmp_path)
    cached = latents.CachedText(tmp_path, 32)
    assert torch.equal(cached(["a room", ""]), live(["a room", ""]))
    with pytest.raises(ValueError, match="no embedding of 'a house'"):
        cached(["a house"])


def test_the_way_through_the_vae_is_measured():
    found = evaluate.round_trip(examples.built().vae, examples.batch("orbit"), KNOBS)
    assert 0 < found["AbsRel limit"] < found["AbsRel"] < 0.2
    assert 0 <= found["EPE limit"] < found["EPE"] < 2
