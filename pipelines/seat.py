"""A seat holds one worker process at a time: it hands it tasks, watches clock and memory, and says how it died.

The worker is a child process and not the Ray actor itself because only a parent learns by which signal a process died, can read
what it wrote last, and can kill it while it holds the interpreter's lock. A Ray actor or the driver's process holds the seat.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pipelines.tasks import TAIL_BYTES, Fault, FaultKind, Job, Outcome, Task, start_fault

_LOOK_S = 0.25
"""How often memory and clock are looked at."""


@dataclass(kw_only=True)
class _Order:
    """A task, or the loading of a fresh worker (key ""), and who waits for what comes of it."""

    task: Task | None
    timeout_s: float
    answered: Future[Outcome] = field(default_factory=Future)
    began: float = 0.0

    @property
    def key(self) -> str:
        return "" if self.task is None else self.task.key

    @property
    def name(self) -> str:
        return "loading" if self.task is None else f"{self.task.kind} {self.task.key}"


class Seat:
    """One worker process and its guard, a thread that starts it, hands it tasks and watches it. For several callers at once.

    Several tasks may be in flight: the worker then works at all of them, and if it dies each outcome names the others.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._bell, self._rope = connection.Pipe(duplex=False)
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: connection.Connection | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._waiting: deque[_Order] = deque()
        self._flying: dict[str, _Order] = {}
        self._since = 0.0
        """When the worker last answered, or was handed its only task."""
        self._tail_from = 0
        self._tasks_done = 0
        self._peak_mib = 0
        self._limit_mib = int(min(job.worker_gib, 0.8 * memory_gib()) * 1024)
        # one thread for good: a worker dies with the thread that started it
        self._guard = threading.Thread(target=self._watch_over, name="seat", daemon=True)
        self._guard.start()

    def order(self, task: Task | None) -> Future[Outcome]:
        """What will come of one task, or of loading a fresh worker (None). A worker that died or is old is replaced first."""
        order = _Order(task=task, timeout_s=self._job.start_timeout_s if task is None else task.timeout_s)
        self._orders.put(order)
        self._rope.send_bytes(b"!")
        return order.answered

    def start(self) -> Outcome:
        """A fresh worker that has loaded its models, or the fault `start_failed`."""
        return self.order(None).result()

    def do(self, task: Task) -> Outcome:
        """What came of one task."""
        return self.order(task).result()

    def close(self) -> None:
        """Kills the worker and waits for its end; the seat is not used again."""
        self._closing.set()
        self._rope.send_bytes(b"!")
        self._guard.join()

    # What follows runs in the guard's thread.

    def _watch_over(self) -> None:
        while not self._closing.is_set():
            self._hand_over()
            watched = [self._bell] if self._pipe is None else [self._bell, self._pipe]
            ready = connection.wait(watched, _LOOK_S if self._flying else None)
            if self._bell in ready:
                self._bell.recv_bytes()
                while not self._orders.empty():
                    self._waiting.append(self._orders.get())
            if self._pipe is not None and self._pipe in ready:
                self._read()
            elif self._flying:
                self._look()
        ended = Fault(kind="died", message="its seat was closed")
        self._end()
        self._lose(lambda order: ended)
        for order in self._waiting:
            self._answer(order, Outcome(fault=ended))
        self._stderr.close()

    def _hand_over(self) -> None:
        """Everything that waits goes to the worker, once there is one."""
        while self._waiting and "" not in self._flying:
            order = self._waiting[0]
            if order.task is None or self._process is None or self._tasks_done >= self._job.recycle_after:
                if self._flying:  # an old worker ends what it began
                    return
                self._spawn()
                loading = _Order(task=None, timeout_s=self._job.start_timeout_s)
                self._send(self._waiting.popleft() if order.task is None else loading, self._job)
            else:
                self._tasks_done += 1
                self._send(self._waiting.popleft(), order.task)

    def _send(self, order: _Order, what: Job | Task) -> None:
        assert self._pipe is not None
        order.began = time.monotonic()
        if not self._flying:
            self._since = order.began
            self._tail_from = self._stderr.seek(0, os.SEEK_END)
        self._flying[order.key] = order
        with contextlib.suppress(OSError):  # a pipe that is closed already is met again when reading
            self._pipe.send(what)

    def _spawn(self) -> None:
        self._end()
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
            [sys.executable, "-m", "pipelines.serve", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            env=environment,
            process_group=0,  # so that what the worker starts dies with it; a new session would hide it from Ray
        )
        theirs.close()
        self._pipe, self._tasks_done, self._peak_mib = ours, 0, 0

    def _read(self) -> None:
        """One answer of the worker, or its death."""
        assert self._pipe is not None
        try:
            key, value, fault = self._pipe.recv()
        except (EOFError, OSError):
            self._died()
            return
        if key == "" and fault is not None:
            self._end()
            self._lose(lambda order: fault)
            return
        self._since = time.monotonic()
        self._answer(self._flying.pop(key), Outcome(value=value if key else machine(), fault=fault))

    def _look(self) -> None:
        """Kills a worker that takes too long or too much. Which of several tasks is to blame, nobody can say from outside.

        The clock runs from the worker's last answer: a task that waits for the one before it is not late.
        """
        assert self._process is not None
        self._peak_mib = max(self._peak_mib, _rss_mib(self._process.pid))
        most_s = max(order.timeout_s for order in self._flying.values())
        if self._peak_mib > self._limit_mib:
            took = f"took {self._peak_mib} MiB of memory, allowed are {self._limit_mib}"
            self._kill("out_of_memory", took)
        elif time.monotonic() - self._since > most_s:
            self._kill("timeout", f"did not end within {most_s:g} s")

    def _kill(self, kind: FaultKind, what: str) -> None:
        self._reap(kill=True)
        peak, tail = self._peak_mib, self._tail()
        self._lose(
            lambda order: Fault(
                kind=kind, message=f"{order.name} {what}", signal="SIGKILL", peak_rss_mib=peak, tail=tail
            )
        )

    def _died(self) -> None:
        status = self._reap(kill=False)
        name = signal.Signals(-status).name if status < 0 else ""
        how = f"ended its worker by {name}" if name else f"ended its worker with exit status {status}"
        peak, tail = self._peak_mib, self._tail()
        self._lose(
            lambda order: Fault(kind="died", message=f"{order.name} {how}", signal=name, peak_rss_mib=peak, tail=tail)
        )

    def _lose(self, why: Callable[[_Order], Fault]) -> None:
        """The worker is gone, and with it all that it had begun; if it was still loading, nothing else can begin either."""
        lost, self._flying = self._flying, {}
        if loading := lost.pop("", None):
            fault = start_fault(why(loading))
            for order in (loading, *self._waiting):
                self._answer(order, Outcome(fault=fault))
            self._waiting.clear()
        for order in lost.values():
            self._answer(order, Outcome(fault=why(order), beside=tuple(key for key in lost if key != order.key)))

    def _answer(self, order: _Order, outcome: Outcome) -> None:
        seconds = time.monotonic() - order.began if order.began else 0.0
        order.answered.set_result(replace(outcome, key=order.key, seconds=seconds))

    def _end(self) -> None:
        if self._process is not None:
            self._reap(kill=True)

    def _reap(self, *, kill: bool) -> int:
        assert self._process is not None
        assert self._pipe is not None
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        pipe.close()
        if not kill:  # the pipe closes a moment before the process is gone
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _tail(self) -> str:
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._tail_from, end - TAIL_BYTES))
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
