"""The worker process: answers a seat's tasks until the pipe closes. Errors are answers; only deaths end the process.

With `overlap` the next clip is loaded and the one before is stored, each in a thread of its own, while this one is computed.
"""

import contextlib
import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, Protocol, runtime_checkable

from pipelines.tasks import TAIL_BYTES, Fault, FaultKind, Job, Task

_PR_SET_PDEATHSIG = 1
_BROKEN_DEVICE = "AcceleratorError"
"""Torch's name for an error after which no kernel runs in this process any more."""


@runtime_checkable
class Worker(Protocol):
    """Answers a task with numbers and strings."""

    def __call__(self, task: Task) -> dict[str, Any]: ...


@runtime_checkable
class Staged(Worker, Protocol):
    """One whose clips go through three stages that need different things: files, the device, the CPU."""

    def load(self, task: Task) -> Any: ...

    def compute(self, loaded: Any) -> Any: ...

    def store(self, computed: Any) -> dict[str, Any]: ...


def make(job: Job) -> Worker:
    """The job's worker, its models loaded."""
    module, _, name = job.factory.partition(":")
    return getattr(importlib.import_module(module), name)(**job.arguments)


def serve(pipe: connection.Connection) -> None:
    """Loads the worker that the first message describes, then answers every task by its key."""
    job: Job = pipe.recv()
    try:
        worker = make(job)
    except Exception as error:
        pipe.send(("", {}, fault_of(error)))
        return
    pipe.send(("", {}, None))
    if job.overlap:
        assert isinstance(worker, Staged)
        _serve_overlapped(worker, pipe)
    else:
        for task in _tasks(pipe):
            pipe.send((task.key, *attempt(worker, task)))


def attempt(step: Callable[[Any], Any], what: Any) -> tuple[Any, Fault | None]:
    """What the step makes of it, or its exception as a fault."""
    try:
        return step(what), None
    except Exception as error:
        if type(error).__name__ == _BROKEN_DEVICE:
            raise
        return {}, fault_of(error)


def fault_of(error: Exception) -> Fault:
    """An exception as a value: refusals are final, the rest may pass another time."""
    lines = "".join(traceback.format_exception(error))[-TAIL_BYTES:]
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return Fault(kind="refused", message=text, tail=lines)
    kind: FaultKind = "raised"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind = "out_of_memory"
    return Fault(kind=kind, message=f"{type(error).__name__}: {text}", tail=lines)


def _tasks(pipe: connection.Connection) -> Iterator[Task]:
    with contextlib.suppress(EOFError):
        while True:
            yield pipe.recv()


def _serve_overlapped(worker: Staged, pipe: connection.Connection) -> None:
    """The main thread computes: what holds a device's state stays in one thread. The loop bounds what is in flight."""
    loaded: queue.SimpleQueue[Any] = queue.SimpleQueue()
    computed: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def load() -> None:
        for task in _tasks(pipe):
            staged = task.kind == "clip"
            loaded.put((task, *(attempt(worker.load, task) if staged else (task, None))))
        loaded.put(None)

    def store() -> None:
        for task, value, fault in iter(computed.get, None):
            if fault is None and task.kind == "clip":
                value, fault = attempt(worker.store, value)
            pipe.send((task.key, value, fault))

    threads = [threading.Thread(target=_or_die, args=(stage,), name=stage.__name__) for stage in (load, store)]
    for thread in threads:
        thread.start()
    for task, value, fault in iter(loaded.get, None):
        if fault is None:
            value, fault = attempt(worker.compute if task.kind == "clip" else worker, value)
        computed.put((task, value, fault))
        del value  # a clip's pixels are not kept for the next
    computed.put(None)
    for thread in threads:
        thread.join()


def _or_die(stage: Callable[[], None]) -> None:
    """A thread that ends by itself would leave its seat waiting: the process ends with it."""
    try:
        stage()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _die_with(parent: int) -> None:
    """A worker never outlives its seat, not even while it hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _die_with(int(sys.argv[2]))
    _or_die(lambda: serve(connection.Connection(int(sys.argv[1]))))
