"""`worldreel status`, the display and the metrics: numbers that files tell, held against the index."""

import io
import json
import re
from pathlib import Path

import pytest
import quick
from rich.console import Console

from pipelines import annotation, lease, progress, status
from pipelines.funnel import Funnel
from shared import shards


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos, one that kills, one that is none, one too short for a clip."""
    folder = tmp_path_factory.mktemp("status")
    for seed, name in enumerate(("a", "b", "c", "segv_d")):
        quick.video(folder / "in" / f"{name}.mp4", seed)
    quick.video(folder / "in" / "short.mp4", 9, frames=3)
    (folder / "in" / "zz.mp4").write_text("no video")
    recipe = quick.recipe(block_videos=2, clip_timeout_s=120.0)  # a busy machine is not a fault
    console = Console(file=io.StringIO())
    annotation.annotate(str(folder / "in"), str(folder / "out"), recipe, crew=quick.local(recipe), console=console)
    return folder / "out"


def test_the_funnel_agrees_with_the_index(out: Path) -> None:
    found = status.as_dict(status.read(str(out)))
    rows = shards.read_index(out).to_pylist()
    assert (found["videos"], found["videos_cut"], found["videos_failed"]) == (6, 5, 1)
    assert found["annotated"] == sum(row["status"] == "annotated" for row in rows) == 6
    assert sum(found["screened"].values()) == sum(row["status"] == "screened" for row in rows) == 1
    assert list(found["screened"]) == ["too short"]
    assert found["failed"] == {"died": 2, "refused": 1}
    assert found["quarantined"] == 2
    assert found["clips_committed"] == len(rows)
    assert found["complete"]
    assert found["attempts"] == 6 + 6 + 4 + 3  # videos, good clips, two attempts of each bad one, three packings
    assert found["video_seconds"] == pytest.approx(6 * 5 / 8)


def test_people_and_programs_are_told_the_same(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.show(str(out))
    text = capsys.readouterr().out
    assert "6 videos, 5 cut, 1 failed" in text
    assert not re.search(r"(?<![\d.])8 clips", text)  # a rate of 261.8 clips/min is no count
    assert "6 annotated, 3 failed (2 died, 1 refused; 2 quarantined)" in text
    one = r"[0-9a-f]{32} of \S+segv_d\.mp4: .* SIGSEGV"
    assert re.search(f"failed, died: 2, for example {one}; {one}\n", text)
    assert "every one, with its reason: rows with status failed in shards/*.parquet" in text
    assert "quarantine/*.json" in text
    assert "complete" in text
    status.show(str(out), as_json=True)
    assert json.loads(capsys.readouterr().out)["annotated"] == 6


def test_metrics_are_in_prometheus_format(out: Path) -> None:
    text = (out / "metrics.prom").read_text()
    line = re.compile(r'^(# TYPE worldreel_\w+ gauge|worldreel_\w+(\{\w+="[^"]*"\})? [0-9.e+-]+)$')
    assert all(line.match(found) for found in text.splitlines())
    assert "worldreel_clips_annotated 6\n" in text
    assert 'worldreel_failed{class="died"} 2\n' in text
    assert 'worldreel_clips_screened{reason="too short"} 1\n' in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        status.read(str(tmp_path))


def test_a_run_that_was_cut_off_says_so(out: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(out, tmp_path / "cut")
    last = max((tmp_path / "cut" / "ledger").iterdir())
    last.write_text("".join(last.read_text().splitlines(keepends=True)[:-1]))  # the last commit
    for file in (tmp_path / "cut" / "shards").glob("*-000002-*"):
        file.unlink()
    found = status.read(str(tmp_path / "cut"))
    assert (found.blocks, found.committed) == (3, 2)
    assert "stopped before its end" in status.lines(found)[4]
    with lease.Lease(str(tmp_path / "cut")):
        found = status.read(str(tmp_path / "cut"))
    assert "at work" in status.lines(found)[4]
    assert status.as_dict(found)["at_work"]


def test_what_happened_is_said_once() -> None:
    broken = {"key": "k", "uri": "/v/a.mp4", "reason": "refused: /v/a.mp4: holds only audio"}
    hung = {"key": "c", "uri": "/v/b.mp4", "reason": "timeout: clip c did not end within 5 s"}
    told = Funnel(examples={"refused": [broken], "timeout": [hung]})
    assert told.examples == (told + Funnel()).examples
    assert len((told + told + told + told).examples["refused"]) == 3
    assert told.told_examples("refused") == ["/v/a.mp4: holds only audio"]
    assert told.told_examples("timeout") == ["c of /v/b.mp4: clip c did not end within 5 s"]


def test_time_left_follows_from_the_pace() -> None:
    half = Funnel(videos_cut=5, clips_found=20, annotated=10)
    assert progress.expected_clips(half, 10) == 40
    assert progress.eta(half, 10, pace=0.1) == "about 5 min left"
    assert progress.eta(half, 10, pace=0.0) == "time left unknown"
    assert progress.eta(Funnel(videos_cut=2, clips_found=4, annotated=4), 2, 0.1) == "no clip left"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_live_block_and_a_log_plain_lines(tmp_path: Path, terminal: bool) -> None:
    text = io.StringIO()
    display = progress.Display(str(tmp_path), Console(file=text, force_terminal=terminal, width=100))
    for annotated in range(3):
        display.update(Funnel(videos_cut=1, clips_found=4, annotated=annotated), 2, 1, 2)
    display.close()
    shown = text.getvalue()
    assert "first clip annotated after" in shown
    assert "2 videos, 1 cut" in shown
    assert ("\x1b[" in shown) == terminal
    assert not re.search("━.*videos", shown)  # the bar has a line of its own
