"""The closed form of the cost of a step, against published figures and against an operator-by-operator count."""

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.flops import Meter, Transformer, decoder_forward, peak
from train.models import SIZES, ModelKnobs, build
from train.size import Size

BASE = Transformer()


@pytest.mark.parametrize(
    ("size", "tokens", "forward", "train", "recomputed"),
    [
        ((49, 480, 720), 17_776, 332, 997, 1329),
        ((49, 384, 576), 11_458, 177, 530, 707),
        ((25, 480, 720), 9_676, 140, 421, 561),
        ((49, 240, 368), 4_711, 56, 169, 225),
    ],
)
def test_the_table_of_the_base_model(size, tokens, forward, train, recomputed):
    """In TFLOP, for CogVideoX-5B."""
    frames, height, width = size
    found = BASE.tokens(Size(frames=frames, height=height, width=width))
    assert found == tokens
    assert BASE.forward(found) / 1e12 == pytest.approx(forward, rel=0.01)
    assert BASE.step(found) / 1e12 == pytest.approx(train, rel=0.01)
    assert BASE.executed(found, "full") / 1e12 == pytest.approx(recomputed, rel=0.01)
    assert BASE.step(found) < BASE.executed(found, "selective") < BASE.executed(found, "full")


def test_attention_counts():
    """56.1 GFLOP a token at full size, where the rule of six per parameter says 33.4."""
    tokens = BASE.tokens(Size())
    assert BASE.step(tokens) / tokens / 1e9 == pytest.approx(56.1, rel=0.01)


def test_the_formula_agrees_with_counting_operators():
    """One real block at full width and length, on tensors without storage."""
    tokens = BASE.tokens(Size())
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        block = CogVideoXBlock(dim=3072, num_attention_heads=48, attention_head_dim=64, time_embed_dim=512)
        block(torch.empty(1, tokens - 226, 3072), torch.empty(1, 226, 3072), torch.empty(1, 512))
    one = Transformer(layers=1)
    assert counter.get_total_flops() == pytest.approx(one.forward(tokens), rel=0.01)


def test_the_decoder_is_counted_where_it_works():
    """Four times the pixels are four times the work, and attention more; the counted model need not fit into memory."""
    small, large = Size(frames=9, height=64, width=96), Size(frames=9, height=128, width=192)
    ratio = decoder_forward(SIZES["tiny"], large) / decoder_forward(SIZES["tiny"], small)
    assert 4 < ratio < 8
    assert decoder_forward(SIZES["paper"], Size()) > 1e12


def test_a_cpu_has_no_peak_to_compare_with():
    assert peak(torch.device("cpu")) is None
    assert "mfu" not in Meter(build(ModelKnobs()), {"dit"}, torch.device("cpu"), 1).read()
