"""A folder that diffusers and transformers wrote is a base: the layout in which CogVideoX-5B-I2V is published, at a tiny size."""

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from train.models import ModelKnobs, TextKnobs, build, load, parts


def _tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "room": 4}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=226
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Saved whole by the pipeline itself: bfloat16, transformer and T5 in several safetensors with an index."""
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        num_layers=2,
        time_embed_dim=32,
        text_embed_dim=32,
        sample_height=8,
        sample_width=12,
        sample_frames=9,
        max_text_seq_length=226,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        scaling_factor=0.7,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )
    text = T5EncoderModel(T5Config(vocab_size=5, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2))
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=_tokenizer(), text_encoder=text, vae=vae, transformer=transformer, scheduler=CogVideoXDPMScheduler()
    )
    folder = tmp_path_factory.mktemp("CogVideoX-tiny-I2V")
    pipeline.to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    return folder


def _knobs(base: Path, **changes) -> ModelKnobs:
    return ModelKnobs(base=str(base), text=TextKnobs(dtype="bfloat16"), **changes)


def test_the_folder_is_as_published(base):
    assert {path.name for path in base.iterdir()} == {
        "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae",
    }  # fmt: skip
    index = json.loads((base / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert (base / "text_encoder" / "config.json").exists()


def test_it_becomes_a_widened_model_with_the_same_weights(base, tmp_path):
    published = CogVideoXTransformer3DModel.from_pretrained(
        base, subfolder="transformer", low_cpu_mem_usage=False, torch_dtype=torch.bfloat16
    ).state_dict()
    built = build(_knobs(base, dtype="bfloat16"))
    found = built.dit.state_dict()
    changed = {"patch_embed.proj.weight", "proj_out.weight", "proj_out.bias"}
    assert published.keys() - found.keys() == {"patch_embed.pos_embedding"}  # dropped, as the knob says
    assert all(torch.equal(published[name], found[name]) for name in found.keys() - changed)
    assert torch.equal(found["patch_embed.proj.weight"][:, :32], published["patch_embed.proj.weight"])
    assert built.dit.dtype == torch.bfloat16
    text = built.text(["a room", ""])
    assert text.shape == (2, 226, 32)
    assert text.dtype == torch.bfloat16
    assert (text[0] - text[1]).abs().max() > 0
    built.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert all(torch.equal(value, found[name]) for name, value in again.dit.state_dict().items())
    assert torch.equal(again.text(["a room"]), text[:1])


def test_what_is_missing_is_named(base, tmp_path):
    with pytest.raises(ValueError, match="no vae in the diffusers layout"):
        build(_knobs(tmp_path))


def test_the_hub_says_what_is_wrong_once():
    client = logging.getLogger("huggingface_hub.utils._http")
    before = client.isEnabledFor(logging.WARNING)
    with parts._hub_is_quiet():
        assert not client.isEnabledFor(logging.WARNING)
        assert client.isEnabledFor(logging.ERROR)
    assert client.isEnabledFor(logging.WARNING) == before
