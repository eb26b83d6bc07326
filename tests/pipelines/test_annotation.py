"""`annotate` as a whole: the same bytes however many work, and nothing lost whatever fails."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import chaos
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import quick
import yaml

from curate import select
from curate.recipe import CurateRecipe
from pipelines import annotation, ledger, loop, plan
from pipelines.fleet import Inline, Local, RayActors
from pipelines.lease import Lease
from pipelines.recipes import AnnotateRecipe
from shared import shards
from shared.knobs import load

_NAMES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six videos, two clips each: two blocks."""
    for seed, name in enumerate(_NAMES):
        quick.video(tmp_path / "in" / f"{name}.mp4", seed)
    return tmp_path / "in"


def _rows(out: Path) -> list[dict[str, Any]]:
    return shards.read_index(out).to_pylist()


def _status(out: Path) -> Counter[str]:
    return Counter(row["status"] for row in _rows(out))


def _annotate(
    source: Path, out: Path, seats: int = 2, knobs: dict[str, Any] | None = None, **more: Any
) -> annotation.Summary:
    recipe = quick.recipe(**(knobs or {}))
    return annotation.annotate(str(source), str(out), recipe, crew=quick.local(recipe, seats), **more)


def test_shards_do_not_depend_on_workers_executor_or_order(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for seats in (1, 2, 4):
        summary = _annotate(videos, tmp_path / str(seats), seats)
        assert (summary.videos, summary.annotated, summary.blocks) == (6, 12, 2)
        found[str(seats)] = chaos.hashes(tmp_path / str(seats))
    recipe = quick.recipe()
    annotation.annotate(
        str(videos), str(tmp_path / "inline"), recipe, crew=lambda: (Inline(), quick.seats(recipe, 1)), inline=True
    )
    annotation.annotate(str(videos), str(tmp_path / "ray"), recipe, crew=lambda: (RayActors(), quick.seats(recipe, 2)))
    monkeypatch.setattr(loop, "_URGENCY", ("cut", "clip", "pack"))
    _annotate(videos, tmp_path / "breadth first", 3)
    for other in ("2", "4", "inline", "ray", "breadth first"):
        found[other] = chaos.hashes(tmp_path / other)
        assert found[other] == found["1"], other
    assert [name for name in found["1"] if name.endswith(".tar")] != []


def test_what_lies_there_afterwards(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _annotate(videos, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "events.jsonl", "ledger", "metrics.prom", "plan", "recipe.yaml", "shards",
    ]  # fmt: skip
    clips = list(shards.read_clips(out))
    assert len(clips) == len({clip.id for clip in clips}) == 12
    assert {Path(clip.source).stem for clip in clips} == set(_NAMES)
    assert all(clip.motion is not None and clip.scores["brightness"] > 0 for clip in clips)
    rows = _rows(out)
    assert [row["clip_id"] for row in rows] == [clip.id for clip in clips]
    assert len({row["work_key"] for row in rows}) == 12
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == quick.recipe().model_dump(mode="json")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert Counter(event["event"] for event in events)["committed"] == 2
    assert {"decode", "encode", "write"} <= set(
        next(e for e in events if e["event"] == "done" and e["kind"] == "clip")["wall"]
    )


def test_a_second_run_finds_nothing_to_do(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = _annotate(videos, out)
    before = {file: file.stat().st_mtime_ns for file in (out / "shards").iterdir()}

    def no_crew() -> Any:
        raise AssertionError("a worker was started")

    again = annotation.annotate(str(videos), str(out), quick.recipe(), crew=no_crew)
    assert {file: file.stat().st_mtime_ns for file in (out / "shards").iterdir()} == before
    assert (again.annotated, again.blocks) == (first.annotated, first.blocks)


def test_scores_that_a_list_gives_are_judged_like_those_measured(videos: Path, tmp_path: Path) -> None:
    """Of a video that others' models called ugly no clip is kept; of one that cannot be opened the index says it too."""
    (videos / "broken.mp4").write_bytes(b"no video")
    names, marks = ["a.mp4", "b.mp4", "broken.mp4"], [5.0, 3.0, 4.5]
    pq.write_table(pa.table({"path": names, "aesthetic": marks, "score.vlm": [1, None, 0]}), videos / "list.parquet")
    out = tmp_path / "out"
    _annotate(videos / "list.parquet", out)
    rows = {(Path(row["source"]).name, row["status"]): row for row in _rows(out)}
    assert {key: row["score.aesthetic"] for key, row in rows.items()} == {
        ("a.mp4", "annotated"): 5.0,
        ("b.mp4", "annotated"): 3.0,
        ("broken.mp4", "failed"): 4.5,
    }
    assert rows["b.mp4", "annotated"]["score.vlm"] is None
    select.curate(
        str(out), load(CurateRecipe, CurateRecipe(duplicates=None), ["checks.picture.aesthetic.fail_below=4"])
    )
    table = select.read_selection(str(out))
    assert table is not None
    told = {Path(row["source"]).name: row["reasons"] for row in table.to_pylist() if not row["keep"]}
    assert told["b.mp4"] == ["picture: aesthetic is 3, below 4"]
    assert set(told) == {"b.mp4", "broken.mp4"}


def test_new_videos_become_new_shards(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _annotate(videos, out)
    before = chaos.hashes(out)
    quick.video(videos / "aa.mp4", 99)
    summary = _annotate(videos, out)
    after = chaos.hashes(out)
    assert (summary.videos, summary.annotated) == (7, 14)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2


def test_each_fault_costs_its_own_clips_and_is_told(videos: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("segv_g", "raise_h", "gil_i", "once_kill_j", "refuse_k")):
        quick.video(videos / f"{name}.mp4", 20 + seed)
    (videos / "zz.mp4").write_text("no video at all")
    out = tmp_path / "out"
    summary = _annotate(videos, out, knobs={"clip_timeout_s": 2.0})
    assert (summary.annotated, summary.failed, summary.quarantined) == (14, 9, 6)
    failed = {}
    for row in _rows(out):
        if row["status"] == "failed":
            failed.setdefault(Path(row["source"]).stem, []).append(row["reason"])
    assert {name: len(reasons) for name, reasons in failed.items()} == {
        "segv_g": 2, "raise_h": 2, "gil_i": 2, "refuse_k": 2, "zz": 1,
    }  # fmt: skip
    assert all("SIGSEGV" in reason for reason in failed["segv_g"])
    assert all("did not end within 2 s" in reason for reason in failed["gil_i"])
    assert "zz.mp4" in failed["zz"][0]
    told = [json.loads(file.read_text()) for file in (out / "quarantine").iterdir()]
    assert len(told) == 6
    crash = next(facts for facts in told if facts["signal"] == "SIGSEGV")
    assert "last words" in crash["tail"]
    good = {row["clip_id"] for row in _rows(out) if Path(row["source"]).stem in _NAMES}
    assert len(good) == 12


def test_retry_gives_quarantined_clips_another_chance(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = tmp_path / "whole"
    _annotate(videos, whole)
    _annotate(videos, out, knobs={"block_videos": 3})
    flag = quick.video(videos / "once_kill_g.mp4", 7)
    _annotate(videos, out, knobs={"attempts": 1, "block_videos": 3})
    assert _status(out) == {"annotated": 13, "failed": 1}  # the first clip died of it, the second did not
    summary = _annotate(videos, out, knobs={"block_videos": 3}, retry="quarantined")
    assert (summary.annotated, summary.failed) == (14, 0)
    assert not list((out / "quarantine").iterdir())
    assert _status(out) == {"annotated": 14}
    assert flag.with_suffix(".happened").exists()
    fresh = tmp_path / "fresh"
    _annotate(videos, fresh, knobs={"block_videos": 3})
    assert list(chaos.hashes(out).values()) == list(chaos.hashes(fresh).values())
    with pytest.raises(ValueError, match="--retry all: expected failed or quarantined"):
        _annotate(videos, out, retry="all")


def test_another_recipe_is_refused_unless_it_takes_over(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _annotate(videos, out, knobs={"workers": 2})
    _annotate(videos, out, knobs={"workers": 1})  # the fleet is free to change
    other = quick.recipe().changed(motion={"max_speed_ratio": 3.0})
    crew = quick.local(other)
    with pytest.raises(ValueError, match=r"another recipe \(motion.max_speed_ratio: 2.0, now 3.0\).*--redo"):
        annotation.annotate(str(videos), str(out), other, crew=crew)
    annotation.annotate(str(videos), str(out), other, crew=crew, redo=True)
    fresh = tmp_path / "fresh"
    summary = annotation.annotate(str(videos), str(fresh), other, crew=crew)
    assert list(chaos.hashes(out)) == list(chaos.hashes(fresh))  # the old shards are gone
    assert [row["clip_id"] for row in _rows(out)] == [row["clip_id"] for row in _rows(fresh)]
    assert {row["work_key"] for row in _rows(out)} == {row["work_key"] for row in _rows(fresh)}
    assert (summary.videos, summary.clips, summary.annotated) == (6, 12, 12)
    assert len(plan.runs(str(out))) == 1
    assert _status(out) == {"annotated": 12}


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "no such file or folder"), ("empty", "holds no video"), ("file.txt", "holds no video")],
)
def test_a_source_that_holds_nothing_makes_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        _annotate(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file") as refusal:
        _annotate(videos, tmp_path / "file" / "out")
    assert "\n" not in str(refusal.value)
    assert "write-check" not in str(refusal.value)


def test_no_clip_at_all_is_a_failed_run(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\0" * 1000)
    with pytest.raises(ValueError, match=r"2 videos gave not one annotated clip \(2 refused, for example .*a.mp4"):
        _annotate(tmp_path / "in", tmp_path / "out")
    assert _status(tmp_path / "out") == {"failed": 2}


def test_a_hopeless_run_stops_early_and_says_why(tmp_path: Path) -> None:
    for number in range(12):
        quick.video(tmp_path / "in" / f"raise_{number}.mp4", number)
    knobs = {"fault_window": 6, "block_videos": 2}
    with pytest.raises(
        ValueError, match=r"6 of the last 6 tasks ended with the same fault \(raised\)|[45] of the last 6 tasks"
    ):
        _annotate(tmp_path / "in", tmp_path / "out", knobs=knobs)
    standings = [s for _, events in ledger.read(str(tmp_path / "out")) for s in ledger.standings(events).values()]
    assert sum(standing.end is not None and standing.kind == "clip" for standing in standings) < 12


def test_a_worker_that_cannot_load_stops_the_run_at_once(videos: Path, tmp_path: Path) -> None:
    recipe = quick.recipe()

    def crew() -> Any:
        place = quick.seats(recipe, 1)[0]
        wild = type(place.job)(factory="wild:Wild", arguments={"refuse": "x.pt: no weights here"}, path=place.job.path)
        return Local(), [type(place)(job=wild, kinds=place.kinds, cpus=0.1, gpus=0.0)]

    with pytest.raises(ValueError, match=r"x\.pt: no weights here"):
        annotation.annotate(str(videos), str(tmp_path / "out"), recipe, crew=crew)
    events = [s for _, events in ledger.read(str(tmp_path / "out")) for s in ledger.standings(events).values()]
    assert all(standing.attempts == 0 for standing in events)


def test_one_run_at_a_time(videos: Path, tmp_path: Path) -> None:
    from pipelines import preflight

    (tmp_path / "out").mkdir()
    with preflight.alone(str(tmp_path / "out")), pytest.raises(ValueError, match="another run is at work here"):
        _annotate(videos, tmp_path / "out")


def test_bytes_in_flight_are_bounded_but_one_always_runs(videos: Path, tmp_path: Path) -> None:
    seen = []

    class Watching(Local):
        def submit(self, number: int, task: Any) -> None:
            seen.append(task.num_bytes)
            super().submit(number, task)
            busy.append(len(self._busy))

    busy: list[int] = []
    recipe = quick.recipe(in_flight_gib=1e-6)
    summary = annotation.annotate(
        str(videos), str(tmp_path / "out"), recipe, crew=lambda: (Watching(), quick.seats(recipe, 3))
    )
    assert summary.annotated == 12
    assert min(seen) > 1e-6 * 2**30
    assert max(busy) <= 3
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert _most_at_once(events) == 1


def test_a_crash_with_several_in_flight_costs_only_the_guilty(tmp_path: Path) -> None:
    videos = tmp_path / "in"
    guilty, _ = quick.video(videos / "segv_early.mp4", 7), quick.video(videos / "z.mp4", 8)
    before, out = tmp_path / "plain", tmp_path / "out"
    plain, overlapped = quick.recipe(attempts=2), quick.recipe(attempts=2, overlap=True)
    annotation.annotate(str(videos), str(before), plain, crew=quick.local(plain, 1))
    annotation.annotate(str(videos), str(out), overlapped, crew=quick.local(overlapped, 1))
    assert chaos.hashes(out) == chaos.hashes(before)

    first, second = (row for row in _rows(out) if row["source"] == str(guilty))
    assert (first["status"], second["status"]) == ("failed", "annotated")
    events = [event for _, block in ledger.read(str(out)) for event in block]
    shared = {event["key"]: (event["class"], event["beside"]) for event in events if event["event"] == "returned"}
    assert shared == {first["clip_id"]: ("died", [second["clip_id"]]), second["clip_id"]: ("died", [first["clip_id"]])}
    faults = Counter(event["key"] for event in events if event["event"] == "fault")
    assert faults == {first["clip_id"]: 2}  # only a death alone counts


def _most_at_once(events: list[dict[str, Any]]) -> int:
    now = most = 0
    for event in events:
        now += {"started": 1, "done": -1}.get(event["event"], 0)
        most = max(most, now)
    return most


def test_a_run_into_a_bucket(videos: Path, tmp_path: Path, bucket: str) -> None:
    from shared import files

    recipe = quick.recipe(spool=str(tmp_path / "spool"))
    for seed, name in enumerate("ab"):
        files.write_whole(f"{bucket}/in/{name}.mp4", quick.video(tmp_path / f"{name}.mp4", seed).read_bytes())
    summary = annotation.annotate(f"{bucket}/in", f"{bucket}/out", recipe, crew=quick.local(recipe))
    assert summary.annotated == 4
    again = annotation.annotate(f"{bucket}/in", f"{bucket}/out", recipe, crew=quick.local(recipe))
    assert again.annotated == 4
    clips = list(shards.read_clips(f"{bucket}/out"))
    assert {clip.source for clip in clips} == {f"{bucket}/in/a.mp4", f"{bucket}/in/b.mp4"}
    names = [uri.removeprefix(f"{bucket}/out/").split("/")[0] for uri in files.list_files(f"{bucket}/out")]
    assert set(names) == {"plan", "ledger", "shards", "recipe.yaml", "events", "metrics.prom"}


def test_a_changed_knob_redoes_what_depends_on_it_and_nothing_else(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _annotate(videos, out)
    before = {clip.id: clip for clip in shards.read_clips(out)}
    keys = {row["clip_id"]: row["work_key"] for row in _rows(out)}

    def redone(**knobs: Any) -> Counter[str]:
        recipe = AnnotateRecipe.model_validate(quick.recipe().model_dump() | knobs)
        annotation.annotate(str(videos), str(out), recipe, crew=quick.local(recipe), redo=True)
        clips = list(shards.read_clips(out))
        assert {clip.id for clip in clips} == set(before)
        for clip in clips:
            assert clip.depth is not None
            assert before[clip.id].depth is not None
            assert (clip.depth.z == before[clip.id].depth.z).all()
        return Counter(name for clip in clips for name in clip.scores if name.startswith("made_"))

    motion = {"max_speed_ratio": 3.0}
    assert redone(motion=motion) == {"made_motion": 12}
    assert all(row["work_key"] != keys[row["clip_id"]] for row in _rows(out))
    cameras = quick.recipe().cameras.model_dump() | {"cpus": 2.0}
    assert redone(motion=motion, cameras=cameras) == {"made_cameras": 12, "made_depth": 12, "made_motion": 12}
    assert redone(motion=motion, cameras=cameras, screen={"luminance": {"min": 1.0, "max": 255.0}}) == {}


def test_a_second_run_in_one_bucket_is_refused(videos: Path, bucket: str) -> None:
    recipe, out = quick.recipe(), f"{bucket}/out"
    with Lease(out), pytest.raises(ValueError, match=r"another run is at work here \(process \d+\)"):
        annotation.annotate(str(videos), out, recipe, crew=quick.local(recipe, 1))
    assert plan.runs(out) == {}
