"""A worker that answers at once, or does what it is told to."""

import ctypes
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.tasks import Task


class Wild:
    def __init__(self, *, refuse: str = "", hang: bool = False) -> None:
        if refuse:
            raise ValueError(refuse)
        if hang:
            time.sleep(1000)

    def __call__(self, task: Task) -> dict[str, Any]:
        misbehave(Path(task.key))
        if task.key == "child.mp4":
            pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], dict(os.environ))
            Path(task.body["pid"]).write_text(str(pid))
            time.sleep(1000)
        return {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS", "")}


class Staged(Wild):
    """Misbehaves in the stage that the task names; `after` waits there until so many were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._num_loaded = 0

    def load(self, task: Task) -> Task:
        self._num_loaded += 1
        return self._stage("load", task)

    def compute(self, task: Task) -> Task:
        while self._num_loaded < task.body.get("after", 0):
            time.sleep(0.01)
        return self._stage("compute", task)

    def store(self, task: Task) -> dict[str, Any]:
        self._stage("store", task)
        return {"pid": os.getpid()}

    def _stage(self, stage: str, task: Task) -> Task:
        if task.body.get("stage", "compute") == stage:
            misbehave(Path(task.key))
        return task


class AcceleratorError(RuntimeError):
    """As torch names what breaks the device for the whole process."""


def misbehave(video: Path) -> None:
    """`segv_a.mp4` ends its worker by a segmentation fault, `once_kill_a.mp4` does so the first time only."""
    what, *rest = video.stem.split("_")
    if what == "once":
        what = rest[0]
        flag = video.with_suffix(".happened")
        if flag.exists():
            return
        flag.touch()
    if what == "raise":
        raise RuntimeError("a bug")
    if what == "device":
        raise AcceleratorError("an illegal memory access")
    if what == "refuse":
        raise ValueError(f"{video}: its flow is flat")
    if what == "segv":
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "nod":
        time.sleep(random.uniform(0.0, 1.0))  # so that clips end in any order
    if what == "nap":
        time.sleep(3)
    if what == "hang":
        time.sleep(1000)
    if what == "gil":
        ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock
    if what == "memory":
        block = bytearray(2 << 30)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(1000)
