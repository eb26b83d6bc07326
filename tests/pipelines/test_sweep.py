"""The sweep: points that differ in what is trained on and not in what is measured on, each done once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scene

from curate import measure
from curate.checks import Checks
from curate.strictness import tightened
from pipelines import sweep, training
from shared import shards
from shared.knobs import load
from train.stream import read_selection

FAST = [
    "strictness=[0,1]",
    "curate.duplicates=null",
    "train.sizes=[{frames: 9, height: 32, width: 48}]",
    "train.phases=[{stage: {kind: decoder}, steps: 2, learning_rate: 0.001}]",
    "train.preflight=false",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three true clips, one whose depth drifts away, and one more as a run of its own to measure on."""
    folder = tmp_path_factory.mktemp("data")
    clips = [scene.clip(k, frames=9, height=48, width=72, focal=66.0) for k in ("dolly", "orbit", "lateral", "follow")]
    ramp = np.linspace(1, 2, 9, dtype=np.float32)[:, None, None]
    clips[1] = clips[1].with_(depth=replace(clips[1].depth, z=clips[1].depth.z * ramp))
    clips = [replace(c, source=f"v{i}", scores=measure.scores(c)) for i, c in enumerate(clips)]
    for name, part in (("out", clips[:3]), ("true", clips[2:])):
        items = [(c.id, shards.encode(c, shards.Store()), shards.index_row(c, dataset="scene")) for c in part]
        shards.write_shard(folder / name / "shards", "a-000000", items)
    return str(folder / "out")


def test_points_are_done_once_and_measured_alike(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = sweep.sweep_recipe("default", [*FAST, f"held_out={Path(out).parent / 'true'}"])
    trained: list[str] = []
    train = training.train

    def dies_after_one(root: str, run: str, recipe: training.TrainRecipe) -> None:
        if trained:
            raise KeyboardInterrupt
        trained.append(run)
        train(root, run, recipe)

    monkeypatch.setattr(training, "train", dies_after_one)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(out, str(tmp_path), recipe)
    assert "strictness 1" not in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(training, "train", lambda root, run, recipe: (trained.append(run), train(root, run, recipe)))
    first, second = sweep.sweep(out, str(tmp_path), recipe)
    assert [Path(run).parent.name for run in trained] == ["000", "001"]
    sweep.sweep(out, str(tmp_path), recipe)
    assert len(trained) == 2
    assert (first["clips"], second["clips"]) == (2, 1)  # the drifting clip; what is measured on is trained on nowhere
    assert first["measures"] != second["measures"]
    assert first["measures"].keys() == second["measures"].keys() > {"depth log-RMSE scaled", "camera angle", "mask IoU"}
    chosen = read_selection(str(tmp_path / "points" / "000"))
    of = {split: {r["source"] for r in chosen.to_pylist() if r["split"] == split} for split in ("train", "validation")}
    assert of == {"train": {"v0", "v1"}, "validation": {"v2", "v3"}}
    assert (tmp_path / first["run"] / "metrics.jsonl").exists()
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert "| strictness 0 | 2 | 1 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds a sweep with another recipe, expected the same again"):
        sweep.sweep(out, str(tmp_path), load(sweep.SweepRecipe, recipe, ["seeds=[1]"]))


def test_one_selection_is_trained_once(out: str, tmp_path: Path) -> None:
    recipe = sweep.sweep_recipe(
        "default", [*FAST, "strictness=[1,0.9,1000000]", f"held_out={Path(out).parent / 'true'}"]
    )
    one, same, none = sweep.sweep(out, str(tmp_path), recipe)
    assert (same["note"], same["run"], same["measures"]) == (
        "the selection of strictness 1",
        one["run"],
        one["measures"],
    )
    assert (none["clips"], none["note"], none["measures"]) == (0, "no clip is kept", {})
    assert json.loads((tmp_path / "points" / "001" / "result.json").read_text()) == same


def test_a_control_trains_on_as_many_clips_drawn_from_all(out: str, tmp_path: Path) -> None:
    recipe = sweep.sweep_recipe("default", [*FAST, "control=true", f"held_out={Path(out).parent / 'true'}"])
    everything, strict, control = sweep.sweep(out, str(tmp_path), recipe)
    assert (control["label"], control["control"]) == ("strictness 1, as many at random", True)
    assert [row["clips"] for row in (everything, strict, control)] == [2, 1, 1]
    chosen = read_selection(str(tmp_path / "points" / "002")).to_pylist()
    assert {row["source"] for row in chosen if row["split"] == "train"} <= {"v0", "v1"}
    numbers = pa.table({"n": range(30)})
    drawn = [sweep._drawn(numbers, 15, seed)["n"].to_pylist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 15
    assert sweep._drawn(numbers, 40, 0) == numbers


def test_what_cannot_be_swept_is_refused(out: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no clip is held out, expected some"):
        sweep.sweep(out, str(tmp_path), sweep.sweep_recipe("default", [*FAST, "curate.splits.validation=0"]))
    with pytest.raises(ValueError, match=r"unknown knob pixels\.edge, did you mean pixels\.edge_px"):
        sweep.sweep_recipe("default", ["vary={pixels.edge: [1]}"])
    with pytest.raises(ValueError, match="a sweep trains on `train` alone"):
        sweep.sweep_recipe("default", ["train.splits=[train,test]"])


def test_strictness_divides_what_is_borne() -> None:
    twice = tightened(Checks(), 2.0)
    assert twice.rigid_flow.rigid_flow_px.fail_above == Checks().rigid_flow.rigid_flow_px.fail_above / 2
    assert twice.flow_cycle.fb_ok.fail_below == pytest.approx(0.75)  # half may be wrong: now a quarter
    assert twice.focal == Checks().focal
    assert tightened(Checks(), 1.0) == Checks()
    assert tightened(Checks(), 0.0).rigid_flow is None
