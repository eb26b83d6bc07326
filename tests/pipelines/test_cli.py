"""The command line as a person meets it: the whole road in small, and every refusal one sentence."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import cli
from shared import codecs
from shared.shards import read_clips
from tests import scene, videos

ROOT = Path(__file__).resolve().parents[2]
SIZE = ("--set", "cut.frames=9", "--set", "cut.fps=24", "--set", "cut.height=96", "--set", "cut.width=128")
SHORT = "phases=[{stage: {kind: generator}, steps: 1}, {stage: {kind: decoder}, steps: 1}, {stage: {kind: joint}, steps: 1}]"


def worldreel(*arguments, code=0):
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def sentence(*arguments):
    """What a refused command says on standard error: its last line, and nothing that looks like a traceback."""
    said = worldreel(*arguments, code=1).strip().splitlines()
    assert said[-1].startswith("worldreel: ")
    assert not any(line.startswith(("Traceback", "  File")) for line in said)
    return said[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one good video and three bad ones."""
    folder = tmp_path_factory.mktemp("run")
    source = folder / "videos"
    source.mkdir()
    clip = scene.clip("lateral", frames=20, height=96, width=128, focal=120.0)
    good = codecs.encode_rgb(clip.rgb, 24.0, crf=14)
    (source / "good.mp4").write_bytes(good)
    (source / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (source / "empty.mp4").write_bytes(b"")
    videos.write_audio(source / "sound.mp4")
    worldreel("annotate", source, folder / "data", "--inline", *SIZE)
    return folder


@pytest.mark.slow
def test_the_whole_road(run):
    data, out = run / "data", run / "run"
    clips = list(read_clips(str(data)))
    assert [clip.rgb.shape for clip in clips] == [(9, 96, 128, 3)] * 2
    assert all(clip.source.endswith("good.mp4") for clip in clips)
    kept = "--set=keep=flag", "--set=checks.coverage=null", "--set=checks.degenerate=null"
    assert "clips found" in worldreel("curate", data, *kept)
    assert "</html>" in (data / "report" / "index.html").read_text()
    assert "keep" in pq.read_table(data / "selection.parquet").column_names
    if not any(pq.read_table(data / "selection.parquet")["keep"].to_pylist()):
        pytest.fail("not one clip of an easy scene was kept")
    tiny = "--set=batch=1", f"--set={SHORT}", "--set=preflight=false"
    worldreel("train", data, out, *tiny)
    assert "finished" in worldreel("train", data, out, *tiny)
    frame = first_frame(clips[0], run / "first.png")
    longer = "--frames", 13, "--overlap", 5  # two windows of nine
    said = worldreel("generate", out, run / "made", "--image", frame, "--steps", 2, "--guidance", 1, *longer)
    assert "seam 1 (experimental): color " in said
    made = next(read_clips(str(run / "made" / "shards")))
    assert made.shape[0] == 13
    assert made.depth is not None
    assert made.scores["drift_color"] >= 0
    assert np.isfinite(made.pointmap()).all()
    assert "annotated" in worldreel("status", data)
    judged = worldreel("evaluate", "model", run / "made" / "shards")
    assert made.id in judged
    assert "|d.d.|object d.d.|" in judged


def test_bad_files_are_rows_with_a_reason(run):
    index = pq.read_table(next((run / "data" / "shards").glob("*.parquet"))).to_pylist()
    reasons = {Path(row["source"]).name: row["reason"] for row in index if row["status"] == "failed"}
    assert set(reasons) == {"truncated.mp4", "empty.mp4", "sound.mp4"}
    assert all(reasons.values())
    assert "video" in reasons["sound.mp4"]


def test_the_same_command_again_does_nothing_twice(run):
    before = {path: path.stat().st_mtime_ns for path in (run / "data" / "shards").iterdir()}
    worldreel("annotate", run / "videos", run / "data", "--inline", *SIZE)
    assert {path: path.stat().st_mtime_ns for path in (run / "data" / "shards").iterdir()} == before


def test_webdataset_alone_reads_the_shards(run):
    """Another reader, in a process that cannot import ours."""
    tar = next((run / "data" / "shards").glob("*.tar"))
    samples = f"webdataset.WebDataset({str(tar)!r}, shardshuffle=False)"
    code = f"import webdataset; print(*(sorted(sample) for sample in {samples}))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    for member in ("rgb.mp4", "json", "cameras.npz"):
        assert member in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("annotate", "/nowhere/at-all.mp4", "{tmp}/out"), "/nowhere/at-all.mp4"),
        (("annotate", "{tmp}/empty", "{tmp}/out"), "no video"),
        (("annotate", "{tmp}/sound.mp4", "{tmp}/out", "--inline"), "expected a video stream"),
        (("annotate", "{tmp}/good.mp4", "{tmp}/out", "--set", "cut.fpps=8"), "unknown knob cut.fpps"),
        (("annotate", "{tmp}/good.mp4", "/proc/nothing/out"), "/proc/nothing"),
        (("curate", "{tmp}/empty"), "empty"),
        (("train", "{tmp}/empty", "{tmp}/run"), "curate"),
        (("generate", "{tmp}/empty", "{tmp}/made", "--image", "{tmp}/none.png"), "train"),
        (("look", "{tmp}/empty"), "empty"),
        (("status", "{tmp}/empty"), "empty"),
        (("evaluate", "labels", "{tmp}/empty", "{tmp}/empty"), "empty"),
    ],
)
def test_a_refusal_is_one_sentence(arguments, words, run, tmp_path):
    (tmp_path / "empty").mkdir()
    videos.write_audio(tmp_path / "sound.mp4")
    shutil.copy(run / "videos" / "good.mp4", tmp_path / "good.mp4")
    assert words in sentence(*(argument.format(tmp=tmp_path) for argument in arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("annotate", "annotate: missing argument 'source'; see `worldreel annotate --help`"),
        ("annotate in out --limit many", "annotate: invalid value for '--limit': "),
        ("annotate in out --nope", "annotate: no such option: --nope; see"),
        ("curate out more", "curate: got unexpected extra argument(s) (more); see"),
        ("train out", "train: missing argument 'run'; see"),
        ("generate run out", "generate: missing option '--image'; see"),
        ("evaluate labels pred", "evaluate: labels: missing argument 'truth'; see `worldreel evaluate labels --help`"),
        ("status", "status: missing argument 'out'; see"),
        ("weights fetch --recipe", "option '--recipe' requires an argument; see `worldreel --help`"),
        ("anotate in out", "no such command 'anotate'"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["worldreel", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"worldreel: {said}")


def test_a_shard_from_a_newer_version_is_refused(run, tmp_path):
    shutil.copytree(run / "data" / "shards", tmp_path / "shards")
    for index in (tmp_path / "shards").glob("*.parquet"):
        table = pq.read_table(index)
        facts = {**table.schema.metadata, b"worldreel.format": b"99"}
        pq.write_table(table.replace_schema_metadata(facts), index)
    assert "99" in sentence("curate", tmp_path)


def first_frame(clip, path):
    import cv2

    cv2.imwrite(str(path), clip.rgb[0, ..., ::-1])
    return path
