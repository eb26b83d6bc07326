"""One driver at a time in one OUT, wherever the drivers run: on one machine, on several that share a disk, or on a bucket.

Each driver keeps an object of its own, `OUT/driver.WRITER.json`, and rewrites it every few seconds: it first writes its own, then
looks for others, so that of two at once one at least sees the other. No clocks are compared: an object whose content changes has a
living driver, one that stays the same for `STALE_S` has a dead one and is removed. A driver that was away for so long that others
may take it for dead stops by itself.
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.ledger import writer_name
from shared import files

BEAT_S = 10.0
LOST_S = 30.0
"""Without a beat that got through, a driver stops."""
STALE_S = 60.0
"""Without a beat, a driver is dead to others."""
_LOOK_S = 1.0
_PREFIX = "driver."


class Lease:
    """The right to write to OUT, from entering to leaving. Entering raises ValueError, one sentence, if another driver has it."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._uri = files.join(out, f"{_PREFIX}{writer_name()}.json")
        self._facts: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), **_process(os.getpid())}
        self._beats, self._holds = 0, False
        self._last = time.monotonic()
        self._lost = ""
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Lease":
        self._beat()
        heart = threading.Thread(target=self._keep, name="lease", daemon=True)
        heart.start()
        try:
            self._claim()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def check(self) -> None:
        """Raises ValueError if others may have taken OUT over meanwhile."""
        if not self._lost and time.monotonic() - self._last > LOST_S:
            self._lost = f"its sign of life could not be written for {LOST_S:g} s"
        if self._lost:
            raise ValueError(f"{self._out}: this run stops, another may have taken over ({self._lost})")

    def _claim(self) -> None:
        """Passes if no other driver lives; of two that start at the same moment one tries again a little later."""
        for last_try in (False, True):
            rival = next((facts for name in self._others() if (facts := self._alive(name)) is not None), None)
            if rival is None:
                self._holds = True
                self._beat()
                return
            if last_try or rival["holds"]:
                where = "" if rival["host"] == self._facts["host"] else f" on {rival['host']}"
                raise ValueError(
                    f"{self._out}: another run is at work here (process {rival['pid']}{where}); wait for it, or end it"
                )
            with self._lock:
                files.remove(self._uri)
                time.sleep(random.uniform(0.5, 3.0))
            self._beat()

    def _others(self) -> list[str]:
        return [uri for uri in _signs(self._out) if uri != self._uri]

    def _alive(self, uri: str) -> dict[str, Any] | None:
        """What the driver of this object says; None: it is dead, and its object is gone."""
        first = facts = _read(uri)
        since = time.monotonic()
        while facts is not None:
            lives = _runs_here(facts)
            if lives is None and facts != first:
                lives = True
            if lives:
                return facts
            if lives is False or time.monotonic() - since > STALE_S:
                files.remove(uri)
                return None
            time.sleep(_LOOK_S)
            facts = _read(uri)
        return None

    def _keep(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(ValueError):  # `check` counts the seconds
                if self._holds and not files.exists(self._uri):
                    self._lost = "its sign of life was removed"
                    return
                self._beat()

    def _beat(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._beats += 1
            content = {**self._facts, "holds": self._holds, "beats": self._beats}
            files.write_whole(self._uri, json.dumps(content).encode())
            self._last = time.monotonic()

    def _leave(self) -> None:
        self._over.set()
        with self._lock, contextlib.suppress(ValueError):
            files.remove(self._uri)


def at_work(out: str) -> bool | None:
    """True: a driver of this machine works in OUT; None: one of another machine does, or was killed there; False: none."""
    lives = [_runs_here(facts) for uri in _signs(out) if (facts := _read(uri)) is not None]
    return True if True in lives else None if None in lives else False


def _signs(out: str) -> list[str]:
    return [files.join(out, name) for name in files.list_folder(out) if name.startswith(_PREFIX)]


def _runs_here(facts: dict[str, Any]) -> bool | None:
    """Whether this driver lives; None: another machine's, of which only its beats tell."""
    if facts["machine"] != _process(os.getpid())["machine"]:
        return None
    return _process(facts["pid"]) == {name: facts[name] for name in ("machine", "began")}


def _read(uri: str) -> dict[str, Any] | None:
    try:
        return json.loads(files.read_bytes(uri))
    except files.NotFound:
        return None


def _process(pid: int) -> dict[str, str]:
    """Names a process for good: its machine (and container) and when it began, empty if it is gone."""
    with contextlib.suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        began = ""
        with contextlib.suppress(OSError):
            facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            began = "" if facts[0] == "Z" else facts[19]
        return {"machine": machine, "began": began}
    return {"machine": f"{socket.gethostname()}-{os.getpid()}", "began": ""}
