"""What a run leaves for people."""

import json

import cv2
import pytest
import torch

from train.log import Log, Sums, _smooth, drop_after, plot, read
from train.recipe import Logging

QUIET = Logging(bar=False, tensorboard=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_every_record_and_event(tmp_path):
    log = Log(tmp_path, QUIET, first_step=0, last_step=3, writes=True)
    for step in (1, 2, 3):
        log.metrics(step, {"phase": "generator", "loss.total": 1 / step})
    log.event("corrupt", clip="a", position=7, reason="torn")
    log.close()
    assert [(r["step"], r["loss.total"]) for r in lines(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    (event,) = lines(tmp_path / "events.jsonl")
    assert {name: event[name] for name in ("event", "clip", "position")} == {
        "event": "corrupt",
        "clip": "a",
        "position": 7,
    }


def test_only_the_first_rank_writes(tmp_path):
    log = Log(tmp_path / "run", QUIET, first_step=0, last_step=3, writes=False)
    log.metrics(1, {"loss.total": 1.0})
    log.event("anything")
    log.step(1, "text")
    log.close()
    assert not (tmp_path / "run").exists()


def test_no_step_is_logged_twice_after_a_resume(tmp_path):
    """A run was killed at step 5 and its last line cut short; its checkpoint is of step 3."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "loss.total": 1.0}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo'
    )
    log = Log(tmp_path, QUIET, first_step=3, last_step=9, writes=True)
    log.metrics(4, {"loss.total": 2.0})
    log.close()
    assert [(record["step"], record["loss.total"]) for record in read(path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_a_missing_file_is_nothing_to_drop(tmp_path):
    drop_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_the_plot_shows_every_term(tmp_path):
    """Two terms give more colors than none; a term that is 0 has no place on a logarithmic axis."""
    (tmp_path / "metrics.jsonl").write_text("")
    plot(tmp_path / "metrics.jsonl", tmp_path / "empty.png")
    records = [{"step": s, "phase": "joint", "loss.a": 2.0 / s, "loss.b": 1.0 / s, "loss.c": 0.0} for s in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    saturated = []
    for name in ("empty.png", "loss.png"):
        hsv = cv2.cvtColor(cv2.imread(str(tmp_path / name)), cv2.COLOR_BGR2HSV)
        saturated.append(int((hsv[..., 1] > 100).sum()))
    assert saturated[0] == 0
    assert saturated[1] > 1000


def test_sums_stay_on_their_device_until_taken():
    sums = Sums()
    for value in (1.0, 2.5):
        sums.add({"a": torch.tensor(value, requires_grad=True)})
    sums.add({"b": torch.tensor(1)})
    assert sums.take() == {"a": 3.5, "b": 1.0}
    assert sums.take() == {}


def test_wandb_without_wandb_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="pip install wandb"):
        Log(tmp_path, Logging(bar=False, wandb="project"), first_step=0, last_step=1, writes=True)


def test_a_smoothed_curve_does_not_hang_on_its_first_value():
    assert _smooth((9.0, 1.0, 2.0)) == [9.0, 1.0, 2.0]  # too short to smooth
    falling = (100.0, *[1.0] * 60)
    assert _smooth(falling)[20] < 1.01 * 100 / 20
    assert _smooth((3.0,) * 500) == pytest.approx([3.0] * 500)
    ripple = tuple(1.0 + (-1) ** i * 0.5 for i in range(500))
    assert _smooth(ripple)[-1] == pytest.approx(1, abs=0.05)
