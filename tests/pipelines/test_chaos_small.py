"""A few kills of each kind; `make chaos` does a hundred."""

import random
import signal
from pathlib import Path

import chaos
import pytest
import quick

_KNOBS = {"attempts": 50, "lost_attempts": 50, "block_videos": 3, "fault_window": 1000}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(9):
        quick.video(folder / f"nod_{seed}.mp4", seed)
    return folder


@pytest.fixture(scope="module")
def calm(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert chaos.drive(videos, out, "local", 2, _KNOBS).wait(timeout=120) == 0
    return out


def test_drivers_that_are_killed_go_on_where_they_were(videos: Path, calm: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "out", random.Random(5)
    for kill in range(6):
        driver = chaos.drive(videos, out, "local", 2, _KNOBS)
        status = chaos.wait(driver, rng.uniform(1.0, 3.5))
        workers = list(chaos.below(driver.pid))
        driver.send_signal(signal.SIGKILL if kill % 2 else signal.SIGTERM)
        driver.wait()
        assert chaos.until_gone(workers) == []
        if status is not None:
            break
    assert chaos.drive(videos, out, "local", 2, _KNOBS).wait(timeout=120) == 0
    assert chaos.verdict(out, calm) == []


def test_workers_that_are_killed_are_replaced(videos: Path, calm: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "out", random.Random(6)
    driver = chaos.drive(videos, out, "local", 2, _KNOBS)
    kills = 0
    while (status := chaos.wait(driver, rng.uniform(0.05, 0.4))) is None:
        if not chaos.in_flight(out):
            continue
        workers = [pid for pid, command in chaos.below(driver.pid).items() if "pipelines.serve" in command]
        if kills < 5:
            kills += chaos.kill_one(workers, rng)
    assert status == 0
    assert kills  # a fast machine may be done before the fifth
    assert chaos.verdict(out, calm) == []
    assert sum(events["fault"] for events in chaos.attempts(out).values()) >= 1
