"""The decoder's shapes, ranges and symmetries."""

import pytest
import torch

from train.models import SIZES, DecoderKnobs
from train.models.dpt import OverTime, TemporalDPT, positions


def _latent(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def decoder() -> TemporalDPT:
    torch.manual_seed(0)
    return TemporalDPT("tiny")


@pytest.mark.parametrize(("frames", "height", "width"), [(3, 6, 8), (1, 2, 2), (5, 4, 10)])
def test_every_task_has_its_shape_at_any_size(decoder, frames, height, width):
    found = decoder(_latent(2, frames, 16, height, width))
    maps = (2, frames, 8 * height, 8 * width)
    assert found.depth.shape == found.dynamic_logit.shape == maps
    assert found.points.shape == found.scene_flow.shape == (*maps, 3)
    assert found.camera.shape == (2, frames, 9)
    assert (found.depth > 0).all()


def test_before_training_it_says_something_plain(decoder):
    found = decoder(_latent(1, 3, 16, 6, 8))
    assert (found.depth - 1).abs().max() < 0.1
    assert found.scene_flow.abs().max() < 0.1
    expected = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1])
    assert (found.camera - expected).abs().max() < 0.1


def test_samples_do_not_see_each_other(decoder):
    latent = _latent(3, 3, 16, 4, 4)
    together, alone = decoder(latent), decoder(latent[1:2])
    assert torch.allclose(together.points[1], alone.points[0], atol=1e-6)
    assert torch.allclose(together.camera[1], alone.camera[0], atol=1e-6)


def test_frames_see_each_other(decoder):
    latent = _latent(1, 3, 16, 4, 4)
    other = latent.clone()
    other[:, 2] += 1
    assert (decoder(latent).depth[:, 0] - decoder(other).depth[:, 0]).abs().max() > 0


def test_every_weight_gets_gradient():
    torch.manual_seed(0)
    decoder = TemporalDPT("tiny")
    for module in decoder.modules():
        if isinstance(module, OverTime):
            torch.nn.init.normal_(module.out.weight, std=0.02)  # past its start as the identity
    found = decoder(_latent(1, 3, 16, 6, 8))
    parts = (found.depth, found.points, found.camera, found.dynamic_logit, found.scene_flow)
    sum((part * _latent(*part.shape)).sum() for part in parts).backward()
    assert not [name for name, value in decoder.named_parameters() if value.grad is None or not value.grad.any()]


def test_heads_stay_in_single_precision_under_autocast(decoder):
    with torch.autocast("cpu", torch.bfloat16):
        found = decoder(_latent(1, 3, 16, 4, 4))
    assert {value.dtype for value in vars(found).values()} == {torch.float32}


def test_recomputation_changes_nothing(decoder):
    latent = _latent(1, 3, 16, 4, 4).requires_grad_()
    decoder(latent).points.sum().backward()
    plain, latent.grad = latent.grad, None
    decoder.backbone.gradient_checkpointing = True
    decoder(latent).points.sum().backward()
    decoder.backbone.gradient_checkpointing = False
    assert torch.equal(latent.grad, plain)


def test_attention_over_time_starts_as_the_identity():
    features = _latent(6, 8, 4, 4)
    assert torch.equal(OverTime(8, 2)(features, 2), features)


def test_tokens_know_their_place():
    where = positions(3, 5, 32, torch.zeros(()))
    assert torch.cdist(where, where).fill_diagonal_(9).min() > 0.1


def test_the_paper_size_is_what_is_written():
    with torch.device("meta"):
        decoder = TemporalDPT()
    assert decoder.knobs == SIZES["paper"]
    blocks = sum(value.numel() for value in decoder.backbone.blocks.parameters())
    assert blocks == 12 * (12 * 768**2 + 13 * 768)
    assert 1.4e8 < sum(value.numel() for value in decoder.parameters()) < 2.4e8


def test_sizes_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="width must divide"):
        DecoderKnobs(width=100)
    with pytest.raises(ValueError, match="ask for 12 blocks"):
        DecoderKnobs(depth=6)
