"""What only a GPU can show: every stage in bfloat16 arithmetic, sharded by nccl, compiled, and resumed."""

import examples
import pytest
import ranks
import test_loop
import torch

from train import models, parallel
from train.models import ModelKnobs
from train.noise import Noise
from train.recipe import Parallel
from train.stages import Decoder, Generator, Joint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # of another build of torch
]


@pytest.fixture
def float32_sums():
    """As a CPU adds: the losses of both are compared."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def of_the_cpu(recipe, root, run, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(torch.cuda, "is_available", lambda: False)
        test_loop.train(recipe, root, run)
    return dict(test_loop.losses(run))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_every_stage_gives_the_losses_of_a_cpu(root, tmp_path, monkeypatch, float32_sums, precision, recompute):
    knobs = Parallel(recompute=recompute, precision=precision)
    assert test_loop.train(ranks.recipe(preflight=True, parallel=knobs), root, tmp_path / "gpu").finished
    found = dict(test_loop.losses(tmp_path / "gpu"))
    expected = of_the_cpu(ranks.BASE, root, tmp_path / "cpu", monkeypatch)
    assert found == pytest.approx(expected, rel=1e-3 if precision == "float32" else 0.05)


def test_compiled_blocks_give_the_same_losses(root, tmp_path):
    for name, compiled in (("plain", False), ("compiled", True)):
        knobs = Parallel(recompute="selective", precision="float32", compile=compiled)
        assert test_loop.train(ranks.generator(2, parallel=knobs), root, tmp_path / name).finished
    assert dict(test_loop.losses(tmp_path / "compiled")) == pytest.approx(
        dict(test_loop.losses(tmp_path / "plain")), rel=1e-3
    )


def test_two_and_two_steps_are_four(root, tmp_path):
    """Bit for bit: at this size no kernel of the step adds in an order of its own."""
    assert test_loop.train(ranks.generator(4), root, tmp_path / "four").finished
    test_loop.train(ranks.generator(2), root, tmp_path / "halves")
    assert test_loop.train(ranks.generator(4), root, tmp_path / "halves").finished
    assert test_loop.losses(tmp_path / "halves") == test_loop.losses(tmp_path / "four")
    test_loop.assert_equal(test_loop.weights(tmp_path / "halves"), test_loop.weights(tmp_path / "four"))


def test_kept_latents_train_the_same_bits(root, tmp_path):
    for name in ("live", "filling", "kept"):
        cache = "" if name == "live" else str(tmp_path / "cache")
        assert test_loop.train(ranks.recipe(latent_cache=cache), root, tmp_path / name).finished
    assert test_loop.losses(tmp_path / "filling") == test_loop.losses(tmp_path / "live")
    assert test_loop.losses(tmp_path / "kept") == test_loop.losses(tmp_path / "live")


@pytest.mark.parametrize("stage", [Generator(), Decoder(), Joint()], ids=lambda stage: stage.kind)
def test_no_stage_waits_for_the_device(stage):
    """As `test_no_waits` has it without a GPU, here told by CUDA itself."""
    built = models.build(ModelKnobs()).to("cuda")
    batch = examples.batch("orbit", "lateral").mapped(torch.Tensor.pin_memory).to("cuda")
    for module in stage.trainable(built).values():
        module.requires_grad_(True)
    total_weight = torch.ones((), device="cuda")
    for told in ("default", "error"):  # the first time, libraries are loaded
        torch.cuda.set_sync_debug_mode(told)
        try:
            losses = stage.loss(built, batch, Noise(seed=0, positions=(3, 4)), total_weight)
            losses["total"].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert losses["total"].isfinite()


def test_attention_is_kept_whatever_its_kernel():
    """The operators of every backend carry the name that selective recomputation looks for."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(str(function))
            return function(*args, **(kwargs or {}))

    query = torch.randn(1, 2, 128, 64, device="cuda", dtype=torch.bfloat16)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        seen = set()
        with sdpa_kernel(backend), Names():
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert any(parallel.ATTENTION in name for name in seen), (backend, seen)
