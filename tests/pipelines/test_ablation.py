"""The ablation as one command: arms that share stages share their work, and what is done is not done again."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import corpus

from pipelines import ablation, recipes
from shared.knobs import dump, load
from train import ablation as arms_of
from train import models
from train.recipe import SMALL, TINY, TrainRecipe

ARMS = ("without_joint", "full", "base_finetuned", "frozen_backbone")


def _recipe(**changes) -> TrainRecipe:
    phases = [phase.model_dump() | {"steps": 1} for phase in TINY.phases]
    tree = TINY.model_dump(mode="json") | {"phases": phases, "preflight": False, **changes}
    return load(TrainRecipe, tree, ["logging.bar=false", "logging.tensorboard=false"])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    split = lambda number: "test" if number == 1 else "train"  # noqa: E731
    return str(corpus.write(tmp_path_factory.mktemp("root"), split=split))


def _ablate(root: str, to: Path, **changes) -> dict:
    judges = recipes.annotate_recipe("embedded", [])
    return ablation.ablate(root, str(to), _recipe(**changes), ARMS, [0], judges, clips=2, steps=1)


def test_all_arms_one_table_nothing_twice(root, tmp_path):
    found = _ablate(root, tmp_path)
    rows = {row["arm"]: row["measures"] for row in found["rows"]}
    assert set(rows) == {ablation.NOTHING, *ARMS}
    assert rows["full"]["noisy depth log-RMSE scaled"] > 0
    assert "diffusion_geometry" in rows["full"]
    assert "diffusion_geometry" not in rows["base_finetuned"]
    assert not any("depth" in name for name in rows["base_finetuned"])
    assert "made d.d." in rows["base_finetuned"]
    before, after = (models.load(tmp_path / f"{arm}-0" / "model").dpt for arm in ("without_joint", "frozen_backbone"))
    kept = {name for name, value in before.state_dict().items() if torch.equal(value, after.state_dict()[name])}
    assert kept == {name for name in before.state_dict() if name.startswith("backbone.")}  # the heads learned
    events = [json.loads(line) for line in (tmp_path / "full-0" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "start"] == [2]  # after the stages it shares
    table = (tmp_path / "ablation.md").read_text()
    assert [line.split("|")[1] for line in table.splitlines()[2:]] == [ablation.NOTHING, *ARMS]
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{ablation.RESULT}")}
    assert _ablate(root, tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{ablation.RESULT}")} == results
    with pytest.raises(ValueError, match="measured under another recipe"):
        _ablate(root, tmp_path, batch=1)


def test_an_arm_asked_for_later_goes_on_from_what_is_there(tmp_path):
    before, later = arms_of.recipe_of(TINY, "without_joint", 0), arms_of.recipe_of(TINY, "reg_weight_5", 0)
    done = tmp_path / "without_joint-0"
    (done / "checkpoints").mkdir(parents=True)
    (done / "checkpoints" / "weights").write_text("w")
    (done / ablation.RESULT).write_text(json.dumps({"recipe": dump(before)}))
    ablation._go_on_from(tmp_path / "reg_weight_5-0", later)
    assert (tmp_path / "reg_weight_5-0" / "checkpoints" / "weights").read_text() == "w"
    ablation._go_on_from(tmp_path / "other-1", arms_of.recipe_of(TINY, "full", 1))
    assert not (tmp_path / "other-1").exists()


def _ended(log: Path, name: str) -> dict[str, float]:
    with log.open("a") as file:
        file.write(f"{name}\n")
    return {"measure": 1.0}


def test_side_by_side_an_arm_waits_for_the_one_it_begins_with(tmp_path):
    runs = {(arm, 0): arms_of.recipe_of(TINY, arm, 0) for arm in ("full", "frozen_backbone", "without_joint")}
    todo = {run: partial(_ended, tmp_path / "log", run[0]) for run in runs}
    found = dict(ablation._at_once(runs, todo, 2))
    assert found == {run: {"measure": 1.0} for run in runs}
    assert (tmp_path / "log").read_text().splitlines()[0] == "without_joint"


def test_an_arm_takes_its_steps_from_the_recipe():
    found = arms_of.recipe_of(SMALL, "self_supervised", 3)
    assert [phase.stage.kind for phase in found.phases] == ["generator", "self_supervised"]
    assert [phase.steps for phase in found.phases] == [phase.steps for phase in SMALL.phases[:2]]
    assert found.seed == found.model.seed == 3
    full, base = (arms_of.recipe_of(SMALL, arm, 0) for arm in ("full", "base_finetuned"))
    assert arms_of.begins_with(full, arms_of.recipe_of(SMALL, "without_joint", 0))
    assert not arms_of.begins_with(full, full)
    assert not arms_of.begins_with(arms_of.recipe_of(SMALL, "without_geometry_latent", 0), base)
    with pytest.raises(ValueError, match="arm 'half': expected one of full"):
        arms_of.recipe_of(SMALL, "half", 0)


def test_an_arm_keeps_the_knobs_of_the_recipe_and_sets_its_own():
    overrides = ["batch=4", "phases.0.learning_rate=0.5", "phases.1.stage.decoding.cameras.weight=7"]
    asked = load(TrainRecipe, SMALL, [*overrides, "phases.2.stage.dpt_weight=0.3", "phases.2.stage.reg_weight=0.2"])
    full, frozen, without = (arms_of.recipe_of(asked, arm, 0) for arm in ("full", "frozen_backbone", "reg_weight_0"))
    assert full.phases == asked.phases
    assert full.batch == 4
    assert frozen.phases[:2] == full.phases[:2]
    assert frozen.phases[2].stage == full.phases[2].stage.changed(freeze_backbone=True)
    assert without.phases[2].stage == full.phases[2].stage.changed(reg_weight=0.0)
    with pytest.raises(ValueError, match="arm full: the recipe has no phase of kind joint"):
        arms_of.recipe_of(asked.changed(phases=asked.phases[:2]), "full", 0)


def test_without_held_out_clips_there_is_nothing_to_measure(tmp_path):
    root = corpus.write(tmp_path, copies=1)
    with pytest.raises(ValueError, match="nothing to measure on in the test split"):
        _ablate(str(root), tmp_path / "to")
