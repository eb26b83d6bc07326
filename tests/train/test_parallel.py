"""Any number of ranks trains the same model."""

import json
import shutil

import pytest
import ranks
import torch
from safetensors.torch import load_file
from torch import nn

from train import loop, models, parallel, sequence
from train.log import read
from train.models import ModelKnobs
from train.noise import Noise
from train.recipe import Parallel
from train.stages import Generator, Joint


@pytest.fixture(scope="module")
def two_ranks(root, tmp_path_factory):
    """Folders of runs that two ranks trained."""
    folder = tmp_path_factory.mktemp("two")
    ranks.launch(
        2,
        root,
        folder,
        "stages",
        "stages_ddp",
        "two:halted",
        "two:resumed",
        "four:resumed",
        "four",
        "validated",
        "half",
        "shared",
        "shared_joint",
    )
    return folder


@pytest.fixture(scope="module")
def one_rank(root, tmp_path_factory):
    """Folders of the same recipes trained here, alone."""
    folder = tmp_path_factory.mktemp("one")
    for name in ("stages", "four", "validated", "odd"):
        loop.train(ranks.RECIPES[name], str(root), str(folder / name))
    return folder


def losses(run):
    return [record["loss.total"] for record in read(run / "metrics.jsonl") if "loss.total" in record]


def weights(run):
    return {
        f"{part}.{name}": value
        for part in ("transformer", "decoder")
        for name, value in load_file(run / "model" / part / "diffusion_pytorch_model.safetensors").items()
    }


def assert_close(left, right, tolerance):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    largest = max(float((left[name] - right[name]).abs().max()) for name in left)
    assert largest <= tolerance, largest


def test_two_ranks_train_what_one_trains(two_ranks, one_rank):
    """Every stage; the same samples and noise, and reductions in another order."""
    assert losses(two_ranks / "stages") == pytest.approx(losses(one_rank / "stages"), rel=2e-5)
    assert losses(two_ranks / "four") == pytest.approx(losses(one_rank / "four"), rel=2e-5)


def test_replicas_train_what_shards_train(two_ranks):
    assert losses(two_ranks / "stages_ddp") == pytest.approx(losses(two_ranks / "stages"), rel=2e-5)


def test_two_and_two_steps_are_four_on_two_ranks(two_ranks):
    """Bit for bit, interrupted in the middle of a stage."""
    assert losses(two_ranks / "resumed") == losses(two_ranks / "four")
    assert_close(two_ranks / "resumed", two_ranks / "four", 0)


def test_a_run_goes_on_with_another_number_of_ranks(root, two_ranks, tmp_path):
    """Two steps by two ranks, two more by one: the samples and noise of the run that never changed."""
    shutil.copytree(two_ranks / "halted", tmp_path / "run")
    loop.train(ranks.RECIPES["four"], str(root), str(tmp_path / "run"))
    assert losses(tmp_path / "run") == pytest.approx(losses(two_ranks / "four"), rel=1e-4)
    assert losses(tmp_path / "run")[:2] == losses(two_ranks / "four")[:2]


def test_validation_ends_though_ranks_do_not_divide_it(two_ranks, one_rank):
    """Three samples on two ranks: the fourth place only keeps the ranks together."""
    found = {}
    for folder in (two_ranks, one_rank):
        (record,) = (r for r in read(folder / "validated" / "metrics.jsonl") if "validation.total" in r)
        found[folder] = {name: value for name, value in record.items() if name.startswith("validation.")}
    assert set(found[two_ranks]) == {"validation.total", "validation.diffusion_rgb", "validation.diffusion_geometry"}
    assert found[two_ranks] == pytest.approx(found[one_rank], rel=1e-4)


def test_half_precision_is_close_and_its_weights_stay_whole(two_ranks):
    """bfloat16 arithmetic, recomputed blocks, two ranks: the same loss within half precision, and float32 weights."""
    assert losses(two_ranks / "half")[0] == pytest.approx(losses(two_ranks / "four")[0], rel=0.01)
    assert losses(two_ranks / "half")[0] != losses(two_ranks / "four")[0]
    assert {value.dtype for value in weights(two_ranks / "half").values()} == {torch.float32}


def test_two_ranks_that_share_a_sample_train_what_one_trains(two_ranks, one_rank):
    """Losses and lengths of gradients; also of 27 video tokens, which two ranks cannot divide, with blocks recomputed."""
    for shared, alone in (("shared", "odd"), ("shared_joint", "stages")):
        mine, theirs = (read(folder / "metrics.jsonl") for folder in (two_ranks / shared, one_rank / alone))
        assert len(mine) == len(theirs) >= 2
        for name in ("loss.total", "grad_norm"):
            assert [r[name] for r in mine] == pytest.approx([r[name] for r in theirs], rel=2e-4), (shared, name)


@pytest.mark.parametrize(("tokens", "padded"), [(4, 4), (5, 6), (6, 6), (1, 2)])
def test_tokens_are_padded_only_where_ranks_do_not_divide_them(tokens, padded):
    assert sequence._padded(torch.ones(1, tokens, 3), 2, axis=1).shape == (1, padded, 3)


def test_heads_that_ranks_cannot_share_are_refused():
    with pytest.raises(ValueError, match="the transformer's 2 heads do not divide among so many ranks"):
        sequence.share_tokens(models.build(ModelKnobs()).dit, None, 3)


def test_the_first_rank_alone_writes_logs(two_ranks):
    steps = [record["step"] for record in read(two_ranks / "four" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]
    starts = [json.loads(line) for line in (two_ranks / "resumed" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("step"), event.get("ranks")) for event in starts] == [
        ("start", 0, 2), ("finished", 2, None), ("start", 2, 2), ("finished", 4, None),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def batch(root):
    from train import reader
    from train.stream import Stream

    stream = Stream(root, batch=1, sizes=ranks.BASE.sizes)
    return reader.read(stream, str(root), Joint().parts, ranks.BASE.reading, [0]).batch


def gradient(batch, what):
    built = models.build(ModelKnobs())
    with parallel.join() as world:
        for module in (built.dit, built.dpt):
            parallel.place(module, Parallel(recompute=what), world)
        Joint().loss(built, batch, Noise(seed=0, positions=(0,)))["total"].backward()
    return {n: p.grad for part in (built.dit, built.dpt) for n, p in part.named_parameters() if p.grad is not None}


def test_what_is_recomputed_is_what_was_computed(batch):
    """Gradients are the same bits whether blocks are kept, recomputed, or recomputed but for attention."""
    kept = gradient(batch, "none")
    assert len(kept) > 50
    for what in ("full", "selective"):
        again = gradient(batch, what)
        assert again.keys() == kept.keys()
        assert all(torch.equal(again[name], kept[name]) for name in kept), what


def test_attention_is_not_run_again(batch, monkeypatch):
    """Counts attention calls of the transformer: twice as many with full recomputation, no more with selective."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function)
            Counting.calls += parallel.ATTENTION in name and "backward" not in name
            return function(*args, **(kwargs or {}))

    def attentions(what):
        built = models.build(ModelKnobs())
        parallel.recompute(built.dit, what)
        Counting.calls = 0
        with Counting():
            Generator().loss(built, batch, Noise(seed=0, positions=(0,)))["total"].backward()
        return Counting.calls

    plain, full, selective = attentions("none"), attentions("full"), attentions("selective")
    layers = models.build(ModelKnobs()).dit.config.num_layers
    assert full == plain + layers
    assert selective == plain


def test_half_precision_masters_are_refused():
    """Small updates would be rounded away."""
    with (
        parallel.join() as world,
        pytest.raises(ValueError, match=r"weight is torch.bfloat16, trained weights must be float32"),
    ):
        parallel.place(nn.Linear(2, 2).bfloat16(), Parallel(), world)


def test_batches_that_ranks_cannot_share_are_refused():
    with pytest.raises(ValueError, match="batch is 2, which does not divide among 3 ranks"):
        parallel.check(ranks.BASE, 3)
    with pytest.raises(ValueError, match=r"share of the batch is 1, not a multiple of parallel\.micro_batch=4"):
        parallel.check(ranks.recipe(parallel=Parallel(micro_batch=4)), 2)
    with pytest.raises(ValueError, match=r"parallel\.sequence is 2, which does not divide 3 ranks"):
        parallel.check(ranks.recipe(parallel=Parallel(sequence=2)), 3)
    with pytest.raises(ValueError, match=r"with compile=true was never tried: set parallel\.compile=false"):
        Parallel(sequence=2, compile=True)


def test_every_repeated_block_is_found():
    built = models.build(ModelKnobs())
    assert set(built.dit.transformer_blocks) <= set(parallel.blocks(built.dit))
    assert set(built.dpt.backbone.blocks) <= set(parallel.blocks(built.dpt))


def test_a_group_that_is_there_is_joined_and_left_alone():
    """As under Ray Train, which makes the group itself."""
    with parallel.join() as outer, parallel.join() as inner:
        assert (inner.rank, inner.size) == (outer.rank, outer.size) == (0, 1)
        assert inner.sum([1.0, 2.0]) == [1.0, 2.0]
    assert not torch.distributed.is_initialized()
