"""What travels between the loop and its workers: paths and numbers, never pixels."""

from dataclasses import dataclass, field
from typing import Any, Literal

TAIL_BYTES = 4000
"""The most that a fault keeps of what a worker wrote last."""

FaultKind = Literal["refused", "raised", "died", "timeout", "out_of_memory", "node_lost", "start_failed"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to do: cut and screen a video, annotate a clip, or pack a block."""

    kind: Literal["cut", "clip", "pack"]
    key: str
    """Of what attempts are counted for: a video, a clip or a block."""
    block: str
    body: dict[str, Any] = field(default_factory=dict)
    timeout_s: float
    num_bytes: int = 0
    """An estimate of the memory it takes."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a task came to nothing."""

    kind: FaultKind
    message: str
    """One sentence."""
    signal: str = ""
    """That killed the worker: SIGSEGV."""
    peak_rss_mib: int = 0
    tail: str = ""
    """The last lines that the worker wrote to stderr, or the traceback."""

    @property
    def final(self) -> bool:
        """True: the same input will be refused again, so it is not tried again."""
        return self.kind == "refused"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A value, or a fault."""

    key: str = ""
    """Of the task; empty: of a worker's start."""
    value: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    beside: tuple[str, ...] = ()
    """Keys of what else was in flight in a worker that died: any of them may be to blame."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker process is made of: a class named by module, its arguments, and where modules are found."""

    factory: str
    """`module:Class`. Called with `arguments`; the instance is called with each task and answers with numbers and strings."""
    arguments: dict[str, Any] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    threads: int = 1
    """Of torch and its libraries: fixed by the recipe, so that sums do not depend on the machine."""
    worker_gib: float = 32.0
    start_timeout_s: float = 900.0
    recycle_after: int = 500
    overlap: bool = False
    """Several clips at once, each at another stage."""


def start_fault(fault: Fault) -> Fault:
    """No clip is to blame for what keeps a worker from loading."""
    message = fault.message if fault.kind == "refused" else f"a worker cannot start: {fault.message}"
    return Fault(kind="start_failed", message=message, signal=fault.signal, tail=fault.tail)
