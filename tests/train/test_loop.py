"""A whole run, alone: what it leaves, how it ends, how it goes on."""

import json
import os
import shutil
import signal
from dataclasses import replace

import cv2
import pyarrow.parquet as pq
import pytest
import ranks
import torch
from safetensors.torch import load_file

from shared import codecs
from shared.knobs import load
from train import loop, step
from train.log import read
from train.recipe import Adam, Parallel, Reading
from train.size import Size


def train(recipe, root, run):
    return loop.train(recipe, str(root), str(run))


def events(run, kind):
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def losses(run):
    return [(record["step"], record["loss.total"]) for record in read(run / "metrics.jsonl")]


def weights(run, part="transformer"):
    return load_file(run / "model" / part / "diffusion_pytorch_model.safetensors")


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def four(root, tmp_path_factory):
    """Four steps of the first stage without interruption."""
    run = tmp_path_factory.mktemp("four")
    assert train(ranks.generator(4), root, run).finished
    return run


@pytest.fixture(scope="module")
def stages(root, tmp_path_factory):
    """All stages, with the checks before them."""
    run = tmp_path_factory.mktemp("stages")
    outcome = train(ranks.recipe(preflight=True), root, run)
    assert (outcome.finished, outcome.step) == (True, 3)
    return run


def test_a_run_leaves_what_it_promises(stages):
    assert {path.name for path in stages.iterdir()} == {
        "recipe.yaml", "events.jsonl", "metrics.jsonl", "loss.png", "checkpoints", "model",
    }  # fmt: skip
    assert [record["phase"] for record in read(stages / "metrics.jsonl")] == ["generator", "decoder", "joint"]
    for record in read(stages / "metrics.jsonl"):
        assert 0 <= record["data_wait"] < 1
        assert record["tflops"] > 0
        assert record["grad_norm"] > 0
    assert [record["learning_rate"] for record in read(stages / "metrics.jsonl")] == [pytest.approx(1e-2 / 3)] * 3
    assert len(list((stages / "checkpoints").iterdir())) == 3
    assert load(loop.TrainRecipe, stages / "recipe.yaml") == ranks.recipe(preflight=True)
    exported = loop.models.load(stages / "model")
    assert_equal(dict(exported.dpt.state_dict()), weights(stages, "decoder"))


def test_preflight_changes_nothing(root, stages, tmp_path):
    train(ranks.BASE, root, tmp_path)
    assert losses(tmp_path) == losses(stages)
    for part in ("transformer", "decoder"):
        assert_equal(weights(tmp_path, part), weights(stages, part))


def test_each_stage_moves_its_own_weights(root, stages, four, tmp_path):
    start = loop.models.build(ranks.BASE.model)
    assert_equal(weights(four, "decoder"), dict(start.dpt.state_dict()))
    trained, first = weights(four), dict(start.dit.state_dict())
    moved = [name for name in first if not torch.equal(first[name], trained[name])]
    assert len(moved) > 0.8 * len(first)
    assert_equal(weights(stages, "vae"), dict(start.vae.state_dict()))


def test_a_finished_run_says_so(root, four):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in four.iterdir())
    outcome = train(ranks.generator(4), root, four)
    assert outcome.finished
    assert "is finished" in outcome.message
    assert sorted((path.name, path.stat().st_mtime_ns) for path in four.iterdir()) == before


def test_two_and_two_steps_are_four(root, four, tmp_path):
    """Bit for bit; and a longer recipe goes on with a finished run."""
    assert train(ranks.generator(2), root, tmp_path).step == 2
    assert train(ranks.generator(4), root, tmp_path).step == 4
    assert losses(tmp_path) == losses(four)
    assert_equal(weights(tmp_path), weights(four))


def test_sigterm_saves_and_nothing_is_lost_or_repeated(root, four, tmp_path, monkeypatch):
    """The signal comes in the middle of the second step, with samples of the third already fetched ahead."""
    seen, handler = (
        [],
        signal.getsignal(signal.SIGTERM),
    )  # a test before this one may have started Ray, which sets its own
    plain = step.Stepper._backward

    def spy(self, loaded):
        seen.append(loaded.positions[0])
        if loaded.positions[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, loaded)

    monkeypatch.setattr(step.Stepper, "_backward", spy)
    outcome = train(ranks.generator(4), root, tmp_path)
    assert (outcome.step, outcome.finished) == (2, False)
    assert "run the same command again" in outcome.message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    assert not (tmp_path / "model").exists()
    assert train(ranks.generator(4), root, tmp_path).finished
    assert seen == list(range(8))
    assert losses(tmp_path) == losses(four)
    assert_equal(weights(tmp_path), weights(four))
    assert signal.getsignal(signal.SIGTERM) == handler


def test_accumulated_micro_batches_are_one_batch(root, four, tmp_path, monkeypatch):
    """The same losses and gradient, one optimizer step, and clipping once, of the whole gradient."""
    clipped = []
    plain = step.parallel.clip
    monkeypatch.setattr(step.parallel, "clip", lambda *a: clipped.append(float(plain(*a))) or torch.tensor(clipped[-1]))
    train(ranks.generator(2, parallel=Parallel(recompute="none", micro_batch=2)), root, tmp_path)
    assert len(clipped) == 2
    at_once, summed = read(tmp_path / "metrics.jsonl"), read(four / "metrics.jsonl")[:2]
    assert [r["step"] for r in at_once] == [1, 2]
    assert [r["loss.total"] for r in at_once] == pytest.approx([r["loss.total"] for r in summed], rel=1e-5)
    assert [r["grad_norm"] for r in at_once] == pytest.approx([r["grad_norm"] for r in summed], rel=1e-4)


def test_another_selection_is_refused_unless_told(root, four, tmp_path):
    other, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(root, other)
    shutil.copytree(four, run)
    table = pq.read_table(other / "selection.parquet")
    pq.write_table(table.slice(1), other / "selection.parquet")
    with pytest.raises(ValueError, match=r"was trained on another selection .* set allow_other_selection=true"):
        train(ranks.generator(5), other, run)
    assert train(ranks.generator(5, allow_other_selection=True), other, run).step == 5


@pytest.mark.parametrize("change", [{"batch": 4}, {"seed": 4}, {"mixture": {"a": 1.0}}])
def test_knobs_that_give_the_step_its_meaning_stay(root, four, change):
    with pytest.raises(ValueError, match=rf"was trained with {next(iter(change))}="):
        train(ranks.generator(5, **change), root, four)


def test_without_a_selection_the_command_to_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="run `worldreel curate"):
        train(ranks.BASE, tmp_path, tmp_path / "run")


def corrupted(root, folder, share):
    """The run with a byte of the depth of some clips changed."""
    shutil.copytree(root, folder)
    rows = pq.read_table(folder / "selection.parquet").to_pylist()
    bad = rows[: round(share * len(rows))]
    for row in bad:
        depth = next(part for part in row["parts"] if part["name"].startswith("depth"))
        with (folder / row["shard"]).open("r+b") as file:
            file.seek(depth["offset"] + depth["size"] // 2)
            found = file.read(4)
            file.seek(-4, 1)
            file.write(bytes(byte ^ 255 for byte in found))
    return folder, {row["clip_id"] for row in bad}


def test_an_unreadable_sample_weighs_nothing_and_is_recorded(root, four, tmp_path):
    """The loss of its step is that of the samples that are left; steps before it do not change at all."""
    folder, bad = corrupted(root, tmp_path / "root", 1 / 6)
    run = tmp_path / "run"
    assert train(ranks.generator(4), folder, run).finished
    found = events(run, "corrupt")
    assert found
    assert {event["clip"] for event in found} == bad
    assert all("checksum" in event["reason"] for event in found)
    at = {event["position"] // 2 for event in found}
    assert read(run / "metrics.jsonl")[-1]["num_corrupt"] == len(found)
    for (number, mine), (_, whole) in zip(losses(run), losses(four)):
        if number - 1 < min(at):
            assert mine == whole
        if number - 1 == min(at):
            assert mine != whole


def test_too_many_unreadable_samples_end_the_run(root, tmp_path, monkeypatch):
    folder, _ = corrupted(root, tmp_path / "root", 1)
    monkeypatch.setattr(loop, "FREE_FAILURES", 3)
    with pytest.raises(ValueError, match=r"4 of 4 samples could not be read, more than reading.max_corrupt=0.01"):
        train(ranks.generator(4), folder, tmp_path / "run")
    assert events(tmp_path / "run", "failed")
    with pytest.raises(ValueError, match=r"no clip of a at 9x32x48 can be read: .*checksum"):
        train(ranks.generator(4, preflight=True), folder, tmp_path / "run2")


def test_a_step_without_any_sample_moves_nothing(root, tmp_path):
    folder, _ = corrupted(root, tmp_path / "root", 1)
    train(ranks.generator(2, reading=Reading(workers=0, max_corrupt=1.0)), folder, tmp_path / "run")
    assert_equal(weights(tmp_path / "run"), dict(loop.models.build(ranks.BASE.model).dit.state_dict()))


def test_a_gradient_that_is_not_finite_names_its_samples(root, tmp_path, monkeypatch):
    monkeypatch.setattr(step.parallel, "clip", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="step 0: the gradient is not finite; its samples are") as refusal:
        train(ranks.generator(2), root, tmp_path)
    (event,) = events(tmp_path, "gradient_not_finite")
    assert len(event["samples"]) == 2
    assert all(name in str(refusal.value) for name in event["samples"])


def test_a_loss_that_is_not_finite_names_its_terms_and_its_sample(root, tmp_path, monkeypatch):
    """Of the two samples of the step, the second has a label that is nan."""
    plain = step.Stepper._next

    def torn(self, batches):
        loaded = plain(self, batches)
        if loaded.positions != (1,):
            return loaded
        bad = torch.full_like(loaded.batch.scene_flow, float("nan"))
        return replace(loaded, batch=replace(loaded.batch, scene_flow=bad))

    monkeypatch.setattr(step.Stepper, "_next", torn)
    decoder = [{**phase, "steps": 1} for phase in ranks.BASE.model_dump()["phases"][1:2]]
    with pytest.raises(ValueError, match="step 0: scene_flow, total not finite in ") as refusal:
        train(ranks.recipe(phases=decoder), root, tmp_path)
    (event,) = events(tmp_path, "gradient_not_finite")
    assert event["losses"] == ["scene_flow", "total"]
    assert len(event["samples"]) == 1
    assert str(refusal.value).endswith(event["samples"][0])


def test_a_spike_is_left_out_and_recorded(root, tmp_path, monkeypatch):
    """The third gradient is ten times longer than those before."""
    norms = iter([1.0, 1.0, 10.0, 1.0])
    monkeypatch.setattr(step, "MIN_NORMS", 2)
    plain = step.parallel.clip
    monkeypatch.setattr(step.parallel, "clip", lambda *a: plain(*a) * 0 + next(norms))
    train(ranks.generator(4, adam=Adam(warmup_steps=0, skip_spikes=4.0)), root, tmp_path)
    (event,) = events(tmp_path, "spike_skipped")
    assert (event["step"], event["norm"], event["median"], len(event["samples"])) == (2, 10.0, 1.0, 2)
    states = [json.loads(path.read_text()) for path in sorted((tmp_path / "checkpoints").glob("*/state.json"))]
    assert states[-1]["norms"] == [1.0, 1.0, 1.0]


def test_the_average_of_the_weights_is_what_is_exported(root, four, tmp_path):
    """avg_n = d avg_{n-1} + (1 - d) w_n, from the start; and it survives a resume."""
    adam = Adam(warmup_steps=3, ema_decay=0.75)
    for steps in (1, 2):
        train(ranks.generator(steps, adam=adam), root, tmp_path / "run")
    start = dict(loop.models.build(ranks.BASE.model).dit.state_dict())
    train(ranks.generator(1), root, tmp_path / "one")
    train(ranks.generator(2), root, tmp_path / "two")
    one, two, found = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(tmp_path / "run")
    for name, value in found.items():
        truth = 0.75 * (0.75 * start[name] + 0.25 * one[name]) + 0.25 * two[name]
        assert torch.allclose(value, truth, atol=1e-6), name


def test_the_memory_a_run_takes_is_known_before_it_starts(root):
    """Float32 weights of all parts, and a gradient and two moments of the largest phase: joint trains transformer and decoder."""
    built = loop.models.build(ranks.BASE.model)
    count = {name: sum(p.numel() for p in getattr(built, name).parameters()) for name in ("dit", "dpt", "vae")}
    everything = sum(count.values())
    assert loop.preflight.state_bytes(ranks.BASE, built) == 4 * (everything + 3 * (count["dit"] + count["dpt"]))
    averaged = ranks.recipe(adam=Adam(ema_decay=0.9))
    assert loop.preflight.state_bytes(averaged, built) == 4 * (2 * everything + 3 * (count["dit"] + count["dpt"]))


def test_activations_count_where_they_outweigh_gradients(root):
    """Full size: 104 MiB a block and sample for its input alone (training.md, section 3), 25 times as much where all is kept."""
    built, size = loop.models.build(ranks.BASE.model), Size()
    recipe = ranks.generator(1, sizes=(size,), parallel=Parallel(recompute="full", micro_batch=2))
    tokens, width, layers = 16 + 13 * 30 * 45, 32, 2
    assert loop.preflight.activation_bytes(recipe, built) == 2 * layers * width * tokens * 2
    with loop.parallel.join() as world:
        few = loop.preflight.needed_bytes(recipe, built, world)
        kept = recipe.model_copy(update={"parallel": Parallel(recompute="none", micro_batch=2)})
        most = loop.preflight.needed_bytes(kept, built, world)
    state, gradients = (loop.preflight.state_bytes(recipe, built), 4 * sum(p.numel() for p in built.dit.parameters()))
    assert few == max(state, state - gradients + 4 * layers * width * tokens)
    assert most == state - gradients + 25 * 4 * layers * width * tokens


def test_generated_clips_are_drawn_on_the_way(root, four, tmp_path):
    """Six rows of five frames, and six panels of nine; and drawing them changes nothing."""
    logging = ranks.BASE.logging.model_copy(update={"sample_every": 2})
    train(ranks.generator(2, logging=logging), root, tmp_path)
    video, picture = sorted((tmp_path / "samples").iterdir())
    assert (video.name, picture.name) == ("00000002.mp4", "00000002.png")
    assert cv2.imread(str(picture)).shape == (6 * 32, 5 * 48, 3)
    assert codecs.decode_rgb(video.read_bytes()).shape == (9, 3 * 32, 2 * 48, 3)
    assert losses(tmp_path) == losses(four)[:2]
