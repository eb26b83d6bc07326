"""Killing drivers and what they started, and looking at what is left."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import ledger
from shared import shards

HERE = Path(__file__).resolve().parent


def drive(
    source: Path, out: Path, crew: str, seats: int, knobs: dict[str, Any], address: str = ""
) -> subprocess.Popen[bytes]:
    """A driver in a process of its own."""
    command = [
        sys.executable,
        str(HERE / "driver.py"),
        str(source),
        str(out),
        crew,
        str(seats),
        json.dumps(knobs),
        address,
    ]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    with open(out.parent / f"{out.name}.log", "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def below(pid: int) -> dict[int, str]:
    """Every process that this one started, and what those did, with their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child in [child for child, parent in parents.items() if parent == todo[0]]:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                todo.append(child)
            except OSError:
                continue
        todo.pop(0)
    return found


def kill_one(pids: list[int], rng: random.Random) -> bool:
    """SIGKILL to one of them; False: there was none left."""
    rng.shuffle(pids)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            return True
        except ProcessLookupError:
            continue
    return False


def hashes(out: Path) -> dict[str, str]:
    """Of every file among the shards."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((out / "shards").iterdir())}


def leftovers(out: Path) -> list[str]:
    """Files that only a killed writer leaves."""
    return [
        str(path)
        for path in out.rglob("*")
        if ".tmp-" in path.name or "spool" in path.parts or path.match("driver.*.json")
    ]


def attempts(out: Path, since: float = 0.0) -> dict[str, Counter[str]]:
    """Events of each video and clip, by kind."""
    found: dict[str, Counter[str]] = {}
    for _, events in ledger.read(str(out)):
        for event in events:
            if "key" in event and event["time"] >= since:
                found.setdefault(event["key"], Counter())[event["event"]] += 1
    return found


def in_flight(out: Path, since: float = 0.0) -> int:
    """Tasks that were begun after this time and have not ended, as the ledger tells."""
    found = attempts(out, since).values()
    return sum(events["started"] - events["done"] - events["fault"] - events["returned"] for events in found)


def verdict(out: Path, calm: Path) -> list[str]:
    """What is wrong with a run that was disturbed, compared with one that was not; empty: nothing."""
    wrong = []
    if hashes(out) != hashes(calm):
        wrong.append("shards differ from the undisturbed run's")
    ids = [clip.id for clip in shards.read_clips(out)]
    if len(ids) != len(set(ids)) or set(ids) != {clip.id for clip in shards.read_clips(calm)}:
        wrong.append("clips are lost or there twice")
    wrong += [f"left behind: {path}" for path in leftovers(out)]
    for key, events in attempts(out).items():
        if events["started"] < events["fault"] + events["returned"]:
            wrong.append(f"{key}: an attempt was not counted: {dict(events)}")
    return wrong


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit status, or None if it still runs."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def pauses(rng: random.Random, low: float, high: float) -> Iterator[float]:
    """Seconds between kills."""
    while True:
        yield rng.uniform(low, high)


def until_gone(pids: list[int], seconds: float = 20.0) -> list[int]:
    """Those that still run after this time."""
    end = time.monotonic() + seconds
    while (alive := [pid for pid in pids if _runs(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    return alive


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
