"""Widening keeps the base model's function; everything else is diffusers' own."""

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline

from train.models import dit, lora, parts


def _base(**changes) -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 32,
        "out_channels": 16,
        "time_embed_dim": 32,
        "text_embed_dim": 32,
        "num_layers": 2,
        "sample_height": 6,
        "sample_width": 8,
        "sample_frames": 9,
        "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True,
    }
    return CogVideoXTransformer3DModel(**config | changes)


def _inputs(channels: int, height: int = 6, width: int = 8) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 3, channels, height, width, generator=rng)
    image = torch.randn(2, 3, 16, height, width, generator=rng)
    return noisy, image, torch.randn(2, 16, 32, generator=rng), torch.tensor([3, 900])


@pytest.mark.parametrize(("height", "width"), [(6, 8), (2, 4), (10, 6)])
def test_widening_leaves_the_rgb_half_bit_for_bit(height, width):
    base = _base()
    wide = dit.widen(base)
    noisy, image, text, t = _inputs(32, height, width)
    with torch.no_grad():
        old = dit.predict(base, noisy[:, :, :16], image, text, t)
        new = dit.predict(wide, noisy, image, text, t)
    assert torch.equal(new[:, :, :16], old)
    assert not new[:, :, 16:].any()


def test_exactly_three_tensors_change():
    base, wide = _base().state_dict(), dit.widen(_base()).state_dict()
    assert base.keys() == wide.keys()
    changed = {name for name in base if base[name].shape != wide[name].shape}
    assert changed == {"patch_embed.proj.weight", "proj_out.weight", "proj_out.bias"}
    assert all(torch.equal(base[name], wide[name]) for name in base.keys() - changed)


def test_both_new_parts_learn_from_the_first_steps():
    wide = dit.widen(_base())
    noisy, image, text, t = _inputs(32)
    loss = (dit.predict(wide, noisy, image, text, t) - 1).square().mean()
    loss.backward()
    assert wide.proj_out.weight.grad[64:].abs().max() > 0
    assert wide.patch_embed.proj.weight.grad[:, 32:].abs().max() > 0


def test_a_text_to_video_base_gets_image_columns_too():
    """The 2B model: 16 channels in, no rotary positions, and a schedule shifted by 3."""
    base = _base(in_channels=16, use_rotary_positional_embeddings=False)
    wide = dit.widen(base, 32, 16)
    noisy, image, text, t = _inputs(32)
    with torch.no_grad():
        old = base(noisy[:, :, :16], encoder_hidden_states=text, timestep=t, return_dict=False)[0]
        new = dit.predict(wide, noisy, image, text, t)
    assert torch.equal(new[:, :, :16], old)
    assert not new[:, :, 16:].any()
    assert (parts._snr_shift(wide), parts._snr_shift(dit.widen(_base()))) == (3.0, 1.0)


def test_copied_rows_predict_what_rgb_predicts():
    wide = dit.widen(_base(), rows="copy")
    noisy, image, text, t = _inputs(32)
    v = dit.predict(wide, noisy, image, text, t)
    assert torch.equal(v[:, :, 16:], v[:, :, :16])


def test_the_base_is_not_touched():
    base = _base()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    dit.widen(base).proj_out.weight.data += 1
    assert base.config.in_channels == 32
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_the_full_size_model_widens():
    with torch.device("meta"):
        base = CogVideoXTransformer3DModel(
            num_attention_heads=48,
            in_channels=32,
            num_layers=42,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
        )
    wide = dit.widen(base)
    assert sum(value.numel() for value in base.parameters()) == 5_570_479_680
    before, after = base.state_dict(), wide.state_dict()
    assert before.keys() == after.keys()
    assert {name for name in before if before[name].shape != after[name].shape} == {
        "patch_embed.proj.weight",
        "proj_out.weight",
        "proj_out.bias",
    }
    assert all(value.is_meta for value in after.values())
    assert wide.patch_embed.proj.weight.shape == (3072, 48, 2, 2)
    assert wide.proj_out.weight.shape == (128, 3072)
    assert wide.config.in_channels == 48
    assert wide.config.out_channels == 32


def test_other_generations_and_widened_models_are_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        dit.widen(_base(patch_size_t=2, patch_bias=False))
    with pytest.raises(ValueError, match="is it widened"):
        dit.widen(dit.widen(_base()))


def test_without_its_position_table_a_model_takes_any_size():
    base = _base(use_learned_positional_embeddings=True)
    with pytest.raises(ValueError, match=r"table is for 9x6x8 .* the sample has 9x8x8"):
        dit.predict(base, *_inputs(16, 8, 8))
    free = dit.drop_learned_positions(base)
    assert dit.predict(free, *_inputs(16, 8, 8)).shape == (2, 3, 16, 8, 8)
    assert "patch_embed.pos_embedding" not in free.state_dict()
    assert not free.config.use_learned_positional_embeddings


def test_no_sinusoids_take_the_place_of_the_position_table(monkeypatch):
    """diffusers makes a table of sines wherever the number of frames is not the learned table's own."""
    base = _base(use_learned_positional_embeddings=True)
    base.patch_embed.pos_embedding.add_(1)  # as training would have moved it
    monkeypatch.setattr(type(base.patch_embed), "_get_positional_embeddings", lambda *a, **k: pytest.fail("sines"))
    own = dit.predict(base, *_inputs(16))
    longer = tuple(torch.cat((value, value[:, :2]), dim=1) for value in _inputs(16)[:2]) + _inputs(16)[2:]
    with pytest.raises(ValueError, match=r"table is for 9x6x8 .* the sample has 17x6x8"):
        dit.predict(base, *longer)
    free = dit.drop_learned_positions(base)
    assert dit.predict(free, *longer).shape == (2, 5, 16, 6, 8)
    assert not torch.equal(dit.predict(free, *_inputs(16)), own)


@pytest.mark.parametrize("size", [(6, 8), (4, 10)])
def test_rotary_positions_are_the_pipelines(size):
    transformer = _base()
    pipeline = CogVideoXImageToVideoPipeline.__new__(CogVideoXImageToVideoPipeline)
    pipeline.transformer, pipeline.vae_scale_factor_spatial = transformer, 8
    theirs = pipeline._prepare_rotary_positional_embeddings(size[0] * 8, size[1] * 8, 3, torch.device("cpu"))
    ours = dit.rotary(transformer, 3, *size, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_a_widened_model_rests_in_diffusers_layout(tmp_path):
    wide = dit.widen(_base())
    wide.save_pretrained(tmp_path)
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    inputs = _inputs(32)
    assert torch.equal(dit.predict(again, *inputs), dit.predict(wide, *inputs))


def test_adapters_start_as_nothing_train_alone_and_merge():
    wide, inputs = dit.widen(_base()), _inputs(32)
    before = dit.predict(wide, *inputs)
    adapted = lora.add(wide, 4)
    assert torch.equal(dit.predict(adapted, *inputs), before)
    adapted.requires_grad_(False)
    moving = list(lora.trainable(adapted).requires_grad_(True).parameters())
    assert sum(value.numel() for value in moving) < 0.5 * sum(value.numel() for value in adapted.parameters())
    optimizer = torch.optim.SGD(moving, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (dit.predict(adapted, *inputs) - 1).square().mean().backward()
        optimizer.step()
    assert all(value.grad is not None for value in moving)
    plain, after = lora.merged(adapted), dit.predict(adapted, *inputs)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(dit.predict(plain, *inputs), after, atol=1e-5)
    assert plain.state_dict().keys() == _base().state_dict().keys()
