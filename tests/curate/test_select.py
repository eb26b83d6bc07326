"""Selections: why each clip is kept or not, in any order, at any size, without opening a shard."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import contact_sheets, select, sorted_rows
from curate.checks import Checks
from curate.explain import explain
from curate.recipe import CurateRecipe
from shared import files, shards
from shared.index import INDEX
from shared.knobs import load
from shared.trust import PixelGates

curate_recipe = partial(load, CurateRecipe)
ALL = CurateRecipe(evaluation_clips=10)


def row(clip_id: str, **changes: Any) -> dict[str, Any]:
    scores = {name.removeprefix("score_"): changes.pop(name) for name in list(changes) if name.startswith("score_")}
    base = {
        "clip_id": clip_id, "status": "annotated", "reason": "", "source": f"s3://b/{clip_id}.mp4", "dataset": "video",
        "first_frame": 0, "last_frame": 48, "num_frames": 49, "height": 240, "width": 368, "fps": 8.0, "caption": "",
        "licence": "CC0-1.0", "annotators": {}, "annotator_licences": ["Apache-2.0"], "degenerate": None, "metric": False,
        "phash": None, "work_key": "k",
    }  # fmt: skip
    return base | changes | {f"score.{name}": value for name, value in scores.items()}


def write(out: Path, *groups: list[dict[str, Any]], names: str = "x") -> str:
    """A shard a group: tars are written, for no one to open."""
    for number, rows in enumerate(groups):
        items = [(r["clip_id"], {"json": b"{}"} if r["status"] == "annotated" else {}, r) for r in rows]
        shards.write_shard(str(out / "shards"), f"{names}-{number:06d}", items)
    return str(out)


def selected(out: str) -> dict[str, dict[str, Any]]:
    table = select.read_selection(out)
    assert table is not None
    return {r["clip_id"]: r for r in table.to_pylist()}


def test_each_clip_has_its_reason(tmp_path: Path) -> None:
    out = write(
        tmp_path,
        [
            row("good", score_rigid_flow_px=0.3),
            row("flagged", score_fb_ok=0.7),
            row("wrong", score_rigid_flow_px=9.0, score_fb_ok=0.1),
            row("screened", status="screened", reason="luminance 1 below 4"),
            {"clip_id": "failed", "status": "failed", "reason": "it is no video"},
            row("unmeasured"),
        ],
    )
    summary = select.curate(out, ALL)
    found = selected(out)
    assert {name for name, r in found.items() if r["keep"]} == {"good", "flagged", "unmeasured"}
    assert found["wrong"]["reasons"] == [
        "flow_cycle: fb_ok is 0.1, below 0.5",
        "rigid_flow: rigid_flow_px is 9, above 2",
    ]
    assert (found["wrong"]["outcome"], found["wrong"]["weight"]) == ("fail", 0.0)
    assert (found["flagged"]["outcome"], found["flagged"]["weight"]) == ("flag", 0.5)
    assert found["flagged"]["reasons"] == ["flow_cycle: fb_ok is 0.7, below 0.75"]
    assert (found["good"]["outcome"], found["good"]["weight"], found["good"]["reasons"]) == ("pass", 1.0, [])
    assert found["screened"]["reasons"] == ["screened: luminance 1 below 4"]
    assert found["failed"]["reasons"] == ["failed: it is no video"]
    assert (summary.found, summary.kept) == (6, 3)
    assert summary.failed_by == {"rigid_flow.rigid_flow_px": 1, "flow_cycle.fb_ok": 1}
    assert summary.failed_only_by["rigid_flow.rigid_flow_px"] == 0
    assert found["good"]["shard"] == "shards/x-000000.tar"
    assert found["good"]["parts"][0]["name"] == "json"


def test_rows_that_know_nothing_but_their_failure(tmp_path: Path) -> None:
    """A video that cannot be opened has no data set, source, size or rate; mixture, per-source limits and `--explain` bear it."""
    bare = [{"clip_id": f"f{i}", "status": "failed", "reason": "it is no video"} for i in range(5)]
    out = write(tmp_path, [*bare, row("good")])
    recipe = curate_recipe(
        {"mixture": {"video": 1}, "per_source": [{"dataset": "v*", "source": "s3*", "set": {"focal.focal_drift.fail_above": 1}}]},
        [],
    )  # fmt: skip
    summary = select.curate(out, recipe)
    found = selected(out)
    assert [name for name, r in found.items() if r["keep"]] == ["good"]
    assert found["good"]["weight"] == 1
    assert all(found[r["clip_id"]]["reasons"] == ["failed: it is no video"] for r in bare)
    assert (summary.found, summary.kept, summary.kept_of) == (6, 1, {"video": 1})
    assert "failed: it is no video" in explain(out, "f0", recipe)


def test_keep_pass_drops_what_is_flagged(tmp_path: Path) -> None:
    out = write(tmp_path, [row("good"), row("flagged", score_fb_ok=0.7)])
    select.curate(out, curate_recipe(ALL, ["keep=pass"]))
    assert [name for name, r in selected(out).items() if r["keep"]] == ["good"]


def test_limits_differ_by_source(tmp_path: Path) -> None:
    rows = [
        row("a", score_rigid_flow_px=3.0),
        row("b", score_rigid_flow_px=3.0, dataset="bedlam"),
        row("c", score_rigid_flow_px=3.0, source="s3://b/drone/c[1].mp4"),
        row("d", score_rigid_flow_px=5.0, dataset="bedlam"),
    ]
    loose = {"rigid_flow.rigid_flow_px.fail_above": 4.0}
    recipe = curate_recipe(
        {"per_source": [{"dataset": "bed*", "set": loose}, {"source": "s3://b/drone/*", "set": loose}]}, []
    )
    out = write(tmp_path, rows)
    select.curate(out, recipe)
    assert {name for name, r in selected(out).items() if r["keep"]} == {"b", "c"}
    with pytest.raises(ValueError, match=r"^recipe: per_source\.0\.set: unknown knob rigid_flow\.px"):
        curate_recipe({"per_source": [{"set": {"rigid_flow.px.fail_above": 4}}]}, [])


def test_licences(tmp_path: Path) -> None:
    rows = [
        row("free"),
        row("own", licence="own"),
        row("by", licence="CC BY 4.0"),
        row("nc", licence="CC-BY-NC-4.0"),
        row("ncsa", licence="CC BY-NC-SA 4.0"),
        row("none", licence=""),
        row("model", annotator_licences=["Apache-2.0", "Tencent research only"]),
    ]
    out = write(tmp_path, rows)
    select.curate(out, curate_recipe(ALL, ["licences.commercial_ok=true"]))
    found = selected(out)
    assert {name for name, r in found.items() if r["keep"]} == {"free", "own", "by"}
    assert found["model"]["reasons"] == [
        "licences: Tencent research only of an annotator is not known to allow commercial use"
    ]
    select.curate(out, curate_recipe(ALL, ["licences.allowed=['cc*']"]))
    assert {name for name, r in selected(out).items() if r["keep"]} == {"free", "by", "nc", "ncsa", "model"}


def test_mixture_sets_how_often(tmp_path: Path) -> None:
    real = [row(f"r{i}", dataset="video") for i in range(6)]
    made = [row(f"m{i}", dataset="kubric", score_fb_ok=0.7 if i == 0 else 1.0) for i in range(3)]
    out = write(tmp_path, real + made + [row("other", dataset="else")])
    select.curate(out, curate_recipe(ALL, ["mixture={video: 1, kubric: 1}"]))
    found = selected(out)
    weights = {d: sum(r["weight"] for r in found.values() if r["dataset"] == d) for d in ("video", "kubric")}
    assert weights["video"] == pytest.approx(weights["kubric"])
    assert found["m0"]["weight"] == pytest.approx(found["m1"]["weight"] / 2)
    assert found["other"]["reasons"] == ["mixture: names no share of else"]
    with pytest.raises(ValueError, match="asks for spring, of which no clip is kept"):
        select.curate(out, curate_recipe(ALL, ["mixture={spring: 1}"]))


def test_pictures_of_a_gate_are_of_what_it_rejects(tmp_path: Path) -> None:
    """A clip that one gate flags and another rejects is no example of what the first rejects."""
    both = row("both", score_rigid_flow_px=1.5, score_scale_drift=0.5)
    out = write(tmp_path, [both, row("flow", score_rigid_flow_px=2.5), row("fine")])
    groups = contact_sheets.choose(select.curate(out, ALL, dry_run=True), ALL)
    assert groups["rejected by rigid_flow.rigid_flow_px"] == ["flow"]
    assert groups["rejected by scale_drift.scale_drift"] == ["both"]


def test_half_real_half_synthetic_at_8_fps(tmp_path: Path) -> None:
    """The paper's mixture: two synthetic sets share their half as told, and clips of other rates are not drawn."""
    rows = [row(f"r{i}", fps=8.0) for i in range(5)] + [row("fast", fps=24.0), row("unknown", fps=None)]
    rows += [row(f"k{i}", dataset="kubric", fps=7.9) for i in range(3)] + [row("k24", dataset="kubric", fps=24.0)]
    rows += [row("p0", dataset="point_odyssey", fps=8.0)]
    out = write(tmp_path, rows)
    select.curate(out, curate_recipe(ALL, ["fps=8", "mixture={video: 0.5, kubric: 0.3, point_odyssey: 0.2}"]))
    found = selected(out)
    assert {name for name, r in found.items() if not r["keep"]} == {"fast", "unknown", "k24"}
    assert found["fast"]["reasons"] == ["fps: is 24, asked for 8"]
    weights = {d: sum(r["weight"] for r in found.values() if r["dataset"] == d) for d in ("video", "kubric")}
    whole = sum(r["weight"] for r in found.values())
    assert weights["video"] / whole == pytest.approx(0.5)
    assert weights["kubric"] / whole == pytest.approx(0.3)


def test_duplicates_of_other_sources_yield(tmp_path: Path) -> None:
    one, near, far = 0x123456789ABCDEF, 0x123456789ABCDEF ^ 0b111, 0x123456789ABCDEF ^ 0b1111
    rows = [
        row("a1", source="a", phash=one),
        row("a2", source="a", phash=one),
        row("b", source="b", phash=near),
        row("c", source="c", phash=-1),
        row("d", source="d"),
        row("e", source="e"),
    ]
    out = write(tmp_path, rows)
    summary = select.curate(out, ALL)
    found = selected(out)
    dropped = [name for name, r in found.items() if not r["keep"]]
    assert dropped in (["b"], ["a1", "a2"], ["a2", "a1"])
    assert "looks like" in found[dropped[0]]["reasons"][0]
    assert summary.failed_by["duplicates"] == len(dropped)
    rows[2]["phash"] = far
    select.curate(write(tmp_path / "far", rows), ALL)
    assert all(r["keep"] for r in selected(str(tmp_path / "far")).values())
    select.curate(out, curate_recipe(ALL, ["duplicates.within_source=true"]))
    assert sum(r["keep"] for r in selected(out).values()) == 4


def test_sources_are_in_one_split(tmp_path: Path) -> None:
    rows = [row(f"{s}x{i}", source=f"v{s}") for s in range(400) for i in range(3)]
    out = write(tmp_path, rows)
    recipe = curate_recipe(ALL, ["splits.validation=0.2", "splits.test=0.1"])
    summary = select.curate(out, recipe)
    found = selected(out).values()
    of = {r["source"]: {s["split"] for s in found if s["source"] == r["source"]} for r in found}
    assert all(len(splits) == 1 for splits in of.values())
    shares = {name: sum(splits == {name} for splits in of.values()) / 400 for name in ("train", "validation", "test")}
    assert shares["validation"] == pytest.approx(0.2, abs=0.06)
    assert shares["test"] == pytest.approx(0.1, abs=0.05)
    held_out = {r["clip_id"] for r in found if r["split"] == "validation"}
    assert set(summary.evaluation["general"]) < held_out
    assert len(summary.evaluation["general"]) == len(summary.evaluation["complex"]) == 10


def test_the_complex_set_moves_most(tmp_path: Path) -> None:
    rows = [row(f"c{i}", score_motion_strength=0.01 * i, score_parallax=0.1) for i in range(30)]
    out = write(tmp_path, rows)
    summary = select.curate(out, curate_recipe(ALL, ["splits.validation=0.99", "splits.test=0", "evaluation_clips=3"]))
    kept = [name for name, r in selected(out).items() if r["split"] == "validation"]
    assert summary.evaluation["complex"] == sorted(kept, key=lambda name: -int(name[1:]))[:3]


def random_rows(number: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        row(
            f"{i:05x}",
            source=f"v{i // 3}",
            dataset=("video", "kubric")[i % 2],
            score_fb_ok=float(rng.random()),
            score_rigid_flow_px=float(rng.gamma(2)),
            phash=int(rng.integers(0, 50)) * 0x0101010101,
        )
        for i in range(number)
    ]


def test_any_order_any_files_one_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(3000)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    write(tmp_path / "one", rows)
    write(tmp_path / "many", *(shuffled[i::7] for i in range(7)))
    columns = [name for name in select.SELECTION.names if name not in ("shard", "parts")]
    recipe = curate_recipe(ALL, ["mixture={video: 1, kubric: 3}", "report.sample=100"])
    first = select.curate(str(tmp_path / "one"), recipe)
    monkeypatch.setattr(sorted_rows, "IN_MEMORY", 500)  # now the sort spills
    monkeypatch.setattr(select, "BATCH", 333)
    second = select.curate(str(tmp_path / "many"), recipe)
    tables = [select.read_selection(str(tmp_path / name), columns) for name in ("one", "many")]
    assert tables[0].equals(tables[1])
    assert 0 < first.kept < 3000
    assert first.numbers() == second.numbers()
    assert first.sample.to_pylist() == second.sample.to_pylist()


def test_no_shard_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write(tmp_path, random_rows(50))
    opened: list[str] = []
    for name in ("open_input", "read_bytes", "read_range", "read_up_to"):
        true = getattr(files, name)
        monkeypatch.setattr(files, name, lambda uri, *rest, true=true: (opened.append(str(uri)), true(uri, *rest))[1])
    for limit in (0.2, 0.4):
        select.curate(out, curate_recipe(ALL, [f"checks.flow_cycle.fb_ok.fail_below={limit}"]))
    assert any(uri.endswith("x-000000.parquet") for uri in opened)
    assert not [uri for uri in opened if uri.endswith(".tar")]


def test_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    out = write(tmp_path, [row("a", score_fb_ok=0.55), row("b", score_fb_ok=0.3)])
    assert select.curate(out, ALL, dry_run=True).kept == 1
    assert select.read_selection(out) is None
    select.curate(out, ALL)
    before = (tmp_path / "selection.parquet").read_bytes()
    loose = curate_recipe(ALL, ["checks.flow_cycle.fb_ok.fail_below=0.2"])
    summary = select.curate(out, loose, dry_run=True)
    assert (summary.newly_kept, summary.newly_dropped) == (1, 0)
    assert (tmp_path / "selection.parquet").read_bytes() == before
    assert "1 newly kept, 0 newly dropped" in summary.lines()[-1]


def test_a_clip_in_two_shards_is_there_once(tmp_path: Path) -> None:
    out = write(tmp_path, [row("a"), row("b")], [row("a"), row("c", status="failed", reason="x")], [row("c")])
    summary = select.curate(out, ALL)
    found = selected(out)
    assert len(found) == select.read_selection(out).num_rows == 3
    assert found["a"]["shard"] == "shards/x-000000.tar"
    assert found["c"]["keep"]
    assert "2 of them rows of clips" in "\n".join(summary.lines())


def test_nothing_annotated_is_refused(tmp_path: Path) -> None:
    out = write(tmp_path, [row("a", status="failed", reason="no video")])
    with pytest.raises(ValueError, match="no annotated clip among 1"):
        select.curate(out, ALL)
    assert select.read_selection(out) is None


def test_selection_has_its_schema_and_its_recipe(tmp_path: Path) -> None:
    out = write(tmp_path, [row("a")])
    select.curate(out, curate_recipe(ALL, ["checks.sampson=null"]))
    assert select.read_selection(out).schema.equals(select.SELECTION)
    again = curate_recipe(tmp_path / "selection.yaml", [])
    assert again.checks == Checks(sampson=None)
    json.dumps(select.curate(out, again).numbers())


def test_index_columns_that_selections_need_exist() -> None:
    carried = set(select.SELECTION.names) - {"keep", "weight", "outcome", "reasons", "split"}
    assert carried <= set(INDEX.names)
    assert pa.types.is_int64(INDEX.field("phash").type)


def test_gates_on_pixels_are_numbers_in_the_selection(tmp_path: Path) -> None:
    out = write(tmp_path, [row("a")])
    select.curate(out, curate_recipe(ALL, ["pixels.edge_px=6", "pixels.uncertainty=1.5"]))
    found = select.read_selection(out)
    assert found is not None
    assert PixelGates.of(found.schema.metadata) == PixelGates(edge_px=6, uncertainty=1.5)
    assert found.schema.remove_metadata().equals(select.SELECTION)
