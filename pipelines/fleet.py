"""Where the seats stand: in this process, in local processes, or in Ray Core actors. One small loop drives all three.

Ray is asked for placement and calls only: actors never restart and Ray retries nothing, the loop decides.
"""

import concurrent.futures
import itertools
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pipelines import seat, serve
from pipelines.tasks import Fault, Job, Outcome, Task, start_fault

TaskKind = Literal["cut", "clip", "pack"]

_OBJECT_STORE_BYTES = 80_000_000
"""The least that Ray accepts: only paths and numbers pass through it."""
_GRACE_S = 60.0
"""Beyond a task's own time-out and the loading of a worker; then not only the worker hangs but its guard."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one seat needs, and which tasks it takes."""

    job: Job
    kinds: frozenset[TaskKind]
    cpus: float
    gpus: float
    depth: int = 1
    """Clips in flight at once; more than one only for a worker that overlaps them."""


@runtime_checkable
class Crew(Protocol):
    """Seats by number. A seat answers each of its tasks with an outcome, whatever happens to it."""

    def start(self, number: int, place: Place) -> None:
        """Fills the seat with a fresh worker; its outcome names the `node` and that machine's `memory_gib`."""
        ...

    def submit(self, number: int, task: Task) -> None: ...

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Outcomes, as soon as there is one, or none after this time. `gone` among the values: the seat must be started again."""
        ...

    def close(self) -> None:
        """Ends every worker, and what was started for them."""
        ...


class Inline:
    """One worker in this process, for debugging: nothing guards it."""

    def __init__(self) -> None:
        self._worker: Any = None
        self._ready: list[tuple[int, Outcome]] = []

    def start(self, number: int, place: Place) -> None:
        worker, fault = serve.attempt(serve.make, place.job)
        self._worker = worker
        outcome = Outcome(value=seat.machine()) if fault is None else Outcome(fault=start_fault(fault))
        self._ready.append((number, outcome))

    def submit(self, number: int, task: Task) -> None:
        began = time.monotonic()
        value, fault = serve.attempt(self._worker, task)
        seconds = time.monotonic() - began
        self._ready.append((number, Outcome(key=task.key, value=value, fault=fault, seconds=seconds)))

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        self._worker = None


class Local:
    """Processes of this machine without Ray."""

    def __init__(self) -> None:
        self._seats: dict[int, seat.Seat] = {}
        self._busy: dict[concurrent.futures.Future[Outcome], int] = {}

    def start(self, number: int, place: Place) -> None:
        if number in self._seats:
            self._seats[number].close()
        self._seats[number] = seat.Seat(place.job)
        self._busy[self._seats[number].order(None)] = number

    def submit(self, number: int, task: Task) -> None:
        self._busy[self._seats[number].order(task)] = number

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        done, _ = concurrent.futures.wait(self._busy, timeout_s, concurrent.futures.FIRST_COMPLETED)
        return [(self._busy.pop(future), future.result()) for future in done]

    def close(self) -> None:
        for held in self._seats.values():
            held.close()


class RayActors:
    """Ray Core actors, on a Ray of our own or on the cluster at `address`. Shuts down only what it started."""

    def __init__(self, address: str | None = None) -> None:
        self._ray, self._ours = connect(address)
        self._load_s = 0.0
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._busy: dict[Any, tuple[int, str]] = {}
        """Seat and task of each call; no task: a start, or a question."""
        self._until: dict[int, tuple[float, float]] = {}
        """When to give up a seat that has tasks, and how long after its next answer."""
        self._doubtful: dict[int, tuple[float, list[str]]] = {}
        """Seats that cannot be reached, until when it is asked why, and their tasks."""

    def start(self, number: int, place: Place) -> None:
        remote = self._ray.remote(_SeatActor).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=place.depth + 1,  # a thread for each task and one for questions
        )
        if number in self._actors:
            self._ray.kill(self._actors[number])
        self._until.pop(number, None)
        self._actors[number] = remote.remote(place.job)
        self._load_s = place.job.start_timeout_s
        # it may wait long for a free machine: the seat itself limits how long its worker may load
        self._busy[self._actors[number].start.remote()] = number, ""

    def submit(self, number: int, task: Task) -> None:
        patience = self._load_s + task.timeout_s + _GRACE_S  # the seat may have to load a fresh worker first
        until, longest = self._until.get(number, (time.monotonic() + patience, patience))
        self._until[number] = until, max(longest, patience)
        self._busy[self._actors[number].do.remote(task)] = number, task.key

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        calls = list(self._busy)
        if not calls:
            return []
        self._ray.wait(calls, num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        outcomes = [self._collect(call) for call in ready if call in self._busy]
        late = [number for number, (until, _) in self._until.items() if time.monotonic() > until]
        outcomes += [self._give_up(number) for number in late]
        return list(itertools.chain.from_iterable(outcomes))

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def machines(self) -> list[dict[str, float]]:
        """Resources of every machine that is alive."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _collect(self, call: Any) -> list[tuple[int, Outcome]]:
        number, key = self._busy.pop(call)
        try:
            outcome = self._ray.get(call)
        except self._ray.exceptions.ActorUnavailableError:
            return self._doubt(number, key)
        except self._ray.exceptions.RayError as error:
            return self._gone(number, [key], self._fault(number, error))
        if number in self._doubtful:
            message = "the connection to its machine was lost for a while"
            return self._gone(number, [key], Fault(kind="node_lost", message=message))
        self._nodes[number] = outcome.value.pop("ray_node", self._nodes.get(number))
        _, patience = self._until.pop(number, (0.0, 0.0))
        if any(busy == number for busy, _ in self._busy.values()):
            self._until[number] = time.monotonic() + patience, patience
        return [(number, outcome)]

    def _doubt(self, number: int, key: str) -> list[tuple[int, Outcome]]:
        """Whether only the actor died or all of its machine, Ray knows some seconds later: asks again until it does."""
        until, keys = self._doubtful.get(number, (time.monotonic() + _GRACE_S, []))
        self._doubtful[number] = until, [*keys, key, *self._dropped(number)]
        if time.monotonic() > until:
            return self._gone(number, [], Fault(kind="node_lost", message="its machine cannot be reached"))
        time.sleep(0.2)
        self._busy[self._actors[number].ping.remote()] = number, ""
        return []

    def _gone(self, number: int, keys: list[str], fault: Fault) -> list[tuple[int, Outcome]]:
        """The same fault for all that was in flight; the first outcome says that the seat is gone."""
        self._until.pop(number, None)
        _, doubted = self._doubtful.pop(number, (0.0, []))
        lost = list(dict.fromkeys(filter(None, [*keys, *doubted, *self._dropped(number)])))
        outcomes = [Outcome(key=key, fault=fault, beside=tuple(k for k in lost if k != key)) for key in lost or [""]]
        outcomes[0].value["gone"] = True
        return [(number, outcome) for outcome in outcomes]

    def _dropped(self, number: int) -> list[str]:
        """Tasks of the seat's other calls, which are no longer waited for."""
        calls = [call for call, (busy, _) in self._busy.items() if busy == number]
        return [self._busy.pop(call)[1] for call in calls]

    def _give_up(self, number: int) -> list[tuple[int, Outcome]]:
        self._ray.kill(self._actors[number])
        fault = Fault(kind="timeout", message="neither the worker nor its guard answered in time")
        return self._gone(number, [], fault)

    def _fault(self, number: int, error: Exception) -> Fault:
        text = " ".join(str(error).split())
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return Fault(kind="out_of_memory", message="its machine ran out of memory and Ray ended it", tail=text)
        if (node := self._nodes.get(number)) and node not in alive:
            return Fault(kind="node_lost", message=f"the machine with Ray's node {node[:12]} was lost", tail=text)
        return Fault(kind="died", message="the actor that holds its worker died", tail=text[-2000:])


class _SeatActor(seat.Seat):
    """A seat that knows its place in the cluster."""

    def start(self) -> Outcome:
        import ray

        outcome = super().start()
        outcome.value["ray_node"] = ray.get_runtime_context().get_node_id()
        return outcome

    def ping(self) -> Outcome:
        """Answers if the actor lives."""
        return Outcome()


def connect(address: str | None) -> tuple[Any, bool]:
    """Ray, quiet, and whether it was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # on Linux, too, nothing outside this machine shall reach what we start
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        return ray, True
    _check_address(address)
    try:
        ray.init(address=address, runtime_env=runtime_env(), **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"--address {address}: no Ray cluster answers ({' '.join(str(error).split())[:200]})"
        ) from None
    return ray, True


def _check_address(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        raise ValueError(f"--address {address}: expected host:port of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"--address {address}: no Ray cluster answers ({error})") from None


def runtime_env() -> dict[str, Any]:
    """Ships our five packages to a cluster whose machines have the dependencies."""
    root = Path(__file__).resolve().parent.parent
    return {"py_modules": [str(root / name) for name in ("annotate", "curate", "pipelines", "shared", "train")]}
