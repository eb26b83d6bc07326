"""A seat holds one worker process at a time: it hands it tasks, watches clock and memory, and says how it died.

The worker is a child process and not the Ray actor itself because only a parent learns by which signal a process died, can read
what it wrote last, and can kill it while it holds the interpreter's lock. A Ray actor or a local thread holds the seat.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pipelines.tasks import Fault, FaultKind, Job, Outcome, Task

_LOOK_S = 0.25
"""How often memory and clock are looked at."""
_TAIL_BYTES = 4000
_PR_SET_PDEATHSIG = 1

Worker = Callable[[Task], dict[str, Any]]
"""Answers a task with numbers and strings."""


class Seat:
    """One worker process and its guard. Not for several threads at once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: connection.Connection | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._task_began = 0
        self._tasks_done = 0
        self._peak_mib = 0
        self._limit_mib = int(min(job.worker_gib, 0.8 * memory_gib()) * 1024)

    def start(self) -> Outcome:
        """A fresh worker that has loaded its models, or the fault `start_failed`."""
        began = time.monotonic()
        self._end()
        self._spawn()
        assert self._pipe is not None
        with contextlib.suppress(OSError):
            self._pipe.send(self._job)
        outcome = self._answer("loading", began, self._job.start_timeout_s)
        if outcome.fault is None:
            return Outcome(value=machine(), seconds=outcome.seconds)
        self._end()
        return Outcome(fault=start_fault(outcome.fault), seconds=outcome.seconds)

    def do(self, task: Task) -> Outcome:
        """What came of one task; a worker that died or is old is replaced first."""
        if self._process is None or self._tasks_done >= self._job.recycle_after:
            started = self.start()
            if started.fault is not None:
                return started
        assert self._pipe is not None
        began = time.monotonic()
        self._task_began = self._stderr.seek(0, os.SEEK_END)
        self._tasks_done += 1
        with contextlib.suppress(OSError):  # a pipe that is closed already is met again when reading
            self._pipe.send(task)
        return self._answer(f"{task.kind} {task.key}", began, task.timeout_s)

    def close(self) -> None:
        """Kills the worker and waits for its end; the seat is not used again."""
        self._end()
        self._stderr.close()

    def kill(self) -> None:
        """Kills the worker while another thread waits for its answer."""
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _end(self) -> None:
        if self._process is not None:
            self._reap(kill=True)

    def _spawn(self) -> None:
        ours, theirs = connection.Pipe()
        threads = str(self._job.threads)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(folder for folder in (*self._job.path, *sys.path) if folder)),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONFAULTHANDLER": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.seat", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            env=environment,
            process_group=0,  # so that what the worker starts dies with it; a new session would hide it from Ray
        )
        theirs.close()
        self._pipe, self._tasks_done, self._peak_mib = ours, 0, 0

    def _answer(self, what: str, began: float, timeout_s: float) -> Outcome:
        """Waits for the worker's answer, its death, its time-out, or too much memory."""
        assert self._pipe is not None
        assert self._process is not None
        while True:
            try:
                if self._pipe.poll(_LOOK_S):
                    value, fault = self._pipe.recv()
                    return Outcome(value=value, fault=fault, seconds=time.monotonic() - began)
            except (EOFError, OSError):
                return self._death(what, began)
            self._peak_mib = max(self._peak_mib, _rss_mib(self._process.pid))
            if self._peak_mib > self._limit_mib:
                reason = f"{what} took {self._peak_mib} MiB of memory, allowed are {self._limit_mib}"
                return self._killed("out_of_memory", reason, began)
            if time.monotonic() - began > timeout_s:
                return self._killed("timeout", f"{what} did not end within {timeout_s:g} s", began)

    def _killed(self, kind: FaultKind, message: str, began: float) -> Outcome:
        self._reap(kill=True)
        fault = Fault(kind=kind, message=message, signal="SIGKILL", peak_rss_mib=self._peak_mib, tail=self._tail())
        return Outcome(fault=fault, seconds=time.monotonic() - began)

    def _death(self, what: str, began: float) -> Outcome:
        status = self._reap(kill=False)
        name = signal.Signals(-status).name if status < 0 else ""
        how = f"by {name}" if name else f"with exit status {status}"
        fault = Fault(
            kind="died",
            message=f"{what} ended its worker {how}",
            signal=name,
            peak_rss_mib=self._peak_mib,
            tail=self._tail(),
        )
        return Outcome(fault=fault, seconds=time.monotonic() - began)

    def _reap(self, *, kill: bool) -> int:
        assert self._process is not None
        assert self._pipe is not None
        process, self._process = self._process, None
        self._pipe.close()
        if not kill:  # the pipe closes a moment before the process is gone
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _tail(self) -> str:
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._task_began, end - _TAIL_BYTES))
        tail = self._stderr.read().decode(errors="replace").strip()
        if end > 1 << 20:
            self._stderr.truncate(0)
        return tail


def machine() -> dict[str, Any]:
    """Where this seat stands."""
    return {"node": socket.gethostname(), "pid": os.getpid(), "memory_gib": memory_gib()}


def memory_gib() -> float:
    """Of this machine, or of the container we are in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total / 2**30


def _rss_mib(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # gone, or no /proc here
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


# What follows runs in the worker process.


def serve(pipe: connection.Connection) -> None:
    """Answers tasks until the pipe closes. Errors are answers; only deaths end the process."""
    try:
        worker = make(pipe.recv())
    except Exception as error:
        pipe.send(({}, fault_of(error)))
        return
    pipe.send(({}, None))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(answer(worker, pipe.recv()))


def answer(worker: Worker, task: Task) -> tuple[dict[str, Any], Fault | None]:
    """The worker's value, or its exception as a fault."""
    try:
        return worker(task), None
    except Exception as error:
        return {}, fault_of(error)


def fault_of(error: Exception) -> Fault:
    """An exception as a value: refusals are final, the rest may pass another time."""
    lines = "".join(traceback.format_exception(error))[-_TAIL_BYTES:]
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return Fault(kind="refused", message=text, tail=lines)
    kind: FaultKind = "raised"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind = "out_of_memory"
    return Fault(kind=kind, message=f"{type(error).__name__}: {text}", tail=lines)


def start_fault(fault: Fault) -> Fault:
    """No clip is to blame for what keeps a worker from loading."""
    message = fault.message if fault.kind == "refused" else f"a worker cannot start: {fault.message}"
    return Fault(kind="start_failed", message=message, signal=fault.signal, tail=fault.tail)


def make(job: Job) -> Worker:
    """The job's worker, its models loaded."""
    module, _, name = job.factory.partition(":")
    return getattr(importlib.import_module(module), name)(**job.arguments)


def _die_with(parent: int) -> None:
    """A worker never outlives its seat, not even while it hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _die_with(int(sys.argv[2]))
    serve(connection.Connection(int(sys.argv[1])))
