"""One driver at a time in one OUT."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import lease
from pipelines.lease import Lease
from shared import files


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "STALE_S", 3.0)
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)


def _left(out: str) -> list[str]:
    return [name for name in files.list_folder(out) if name.startswith("driver.")]


@pytest.fixture(params=["disk", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue('bucket')}/out"


def test_a_second_driver_is_refused_and_leaves_nothing(out: str) -> None:
    with Lease(out), pytest.raises(ValueError, match=r"another run is at work here \(process \d+\); wait for it"):
        Lease(out).__enter__()
    with Lease(out):
        assert len(_left(out)) == 1
    assert not _left(out)


_ELSEWHERE = {"host": "other", "pid": 7, "machine": "another", "began": "1", "holds": True, "beats": 1}


def test_a_living_driver_of_another_machine_is_told_by_its_beats(out: str) -> None:
    uri, over = files.join(out, "driver.other.json"), threading.Event()

    def beat() -> None:
        for number in range(1000):
            files.write_whole(uri, json.dumps({**_ELSEWHERE, "beats": number}).encode())
            if over.wait(0.2):
                return

    files.write_whole(uri, json.dumps(_ELSEWHERE).encode())
    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(ValueError, match=r"process 7 on other"):
        Lease(out).__enter__()
    over.set()
    heart.join()
    assert _left(out) == ["driver.other.json"]


def test_what_a_dead_driver_of_another_machine_left_is_taken_over(out: str) -> None:
    files.write_whole(files.join(out, "driver.other.json"), json.dumps(_ELSEWHERE).encode())
    with Lease(out) as held:
        assert len(_left(out)) == 1
        held.check()


def test_what_a_killed_driver_of_this_machine_left_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_S", 1e9)
    code = f"from pipelines.lease import Lease; Lease({str(tmp_path)!r}).__enter__(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"process {other.pid}"):
            Lease(str(tmp_path)).__enter__()
        other.kill()
    with Lease(str(tmp_path)):
        assert len(_left(str(tmp_path))) == 1


def test_a_driver_whose_sign_was_removed_or_cannot_be_written_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(str(tmp_path)) as held:
        files.remove(tmp_path / _left(str(tmp_path))[0])
        _until_refused(held, "its sign of life was removed")
    monkeypatch.setattr(lease, "BEAT_S", 1e6)
    monkeypatch.setattr(lease, "LOST_S", 0.1)
    with Lease(str(tmp_path)) as held:
        _until_refused(held, "could not be written")


def _until_refused(held: Lease, why: str) -> None:
    def wait() -> None:
        for _ in range(300):
            held.check()
            time.sleep(0.1)

    with pytest.raises(ValueError, match=why):
        wait()


def test_of_drivers_that_start_at_once_one_at_most_works(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_S", 30.0)
    inside: list[Any] = []
    gate, over = threading.Barrier(3), threading.Event()

    def drive() -> None:
        gate.wait()
        try:
            with Lease(out):
                inside.append(1)
                over.wait()
        except ValueError:
            inside.append(0)

    threads = [threading.Thread(target=drive) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(600):
        if len(inside) == 3:
            break
        time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 3
    assert sum(inside) <= 1
