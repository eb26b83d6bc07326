"""A worker that answers at once, or does what it is told to."""

import ctypes
import os
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
    if what == "refuse":
        raise ValueError(f"{video}: its flow is flat")
    if what == "segv":
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "nod":
        time.sleep(0.5)
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
