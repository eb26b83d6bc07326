"""The loop: hands tasks to seats, takes what comes back, and decides what is tried again. It alone retries.

while todo or busy:
    open blocks, hand out what fits         the ledger says `started` before the work does
    for each outcome: done | fault -> again, failed or quarantined
    a block whose clips are all there: pack it
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines import funnel, spool
from pipelines.blocks import OpenBlock, Settings
from pipelines.fleet import Crew, Place, TaskKind
from pipelines.funnel import Funnel
from pipelines.ledger import Event, Ledger, Standing
from pipelines.plan import Block
from pipelines.tasks import Fault, FaultKind, Outcome, Task
from shared import files

_LOOK_S = 0.5
_MOST_START_FAILURES = 12
"""In a row, by deaths and time-outs; an exception while loading ends the run at once."""
_URGENCY: tuple[TaskKind, ...] = ("pack", "clip", "cut")
"""What is nearest to its end comes first: it frees the spool."""
_ANYBODYS: tuple[FaultKind, ...] = ("died", "timeout", "out_of_memory")
"""Faults of a worker as a whole."""


@dataclass(kw_only=True)
class SeatState:
    """What the loop knows of a seat."""

    place: Place
    node: str = ""
    memory_gib: float = 0.0
    ready: bool = False
    """False: its worker starts."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """In flight, by key."""
    alone: bool = False
    """What is in flight must have no other beside it."""


class Hopeless(ValueError):
    """The run cannot go on: one sentence says why."""


@dataclass(kw_only=True)
class Loop:
    """All that a run remembers while it works."""

    crew: Crew
    places: list[Place]
    settings: Settings
    out: str
    ledger: Ledger
    blocks: Iterator[Block]
    standings: Callable[[str], dict[str, Standing]]
    """What the ledger says of a block."""
    say: Callable[..., None]
    """One line of events.jsonl."""
    look: Callable[[Funnel, int], None]
    """Called now and then with the funnel and how many seats are at work."""
    committed: Funnel = field(default_factory=Funnel)
    """Of blocks that are done with."""
    seats: dict[int, SeatState] = field(default_factory=dict)
    opened: dict[str, OpenBlock] = field(default_factory=dict)
    todo: dict[TaskKind, deque[Task]] = field(default_factory=lambda: {kind: deque() for kind in _URGENCY})
    _exhausted: bool = False
    _start_failures: int = 0
    _recent: deque[str] = field(default_factory=deque)
    _refused: int = 0
    """Videos in a row."""

    def run(self) -> Funnel:
        """Works until every block is committed. Raises Hopeless, or KeyboardInterrupt; what was begun is given back either way."""
        self.seats = {number: SeatState(place=place) for number, place in enumerate(self.places)}
        for number in self.seats:
            self._start(number)
        try:
            while self._more():
                self._hand_out()
                for number, outcome in self.crew.wait(_LOOK_S):
                    self._take(number, outcome)
                self.look(self.funnel(), sum(bool(seat.tasks) for seat in self.seats.values()))
        finally:
            self._give_back()
        return self.committed

    def funnel(self) -> Funnel:
        """Everything so far."""
        return sum((_counted(block) for block in self.opened.values()), self.committed)

    # What to do next

    def _more(self) -> bool:
        """Opens blocks while there is room; False: everything is done."""
        while not self._exhausted and self._waiting() < 2 * self._most_in_flight() and self._room():
            block = next(self.blocks, None)
            if block is None:
                self._exhausted = True
            else:
                self._open(block)
        return bool(self.opened or not self._exhausted)

    def _waiting(self) -> int:
        return sum(len(waiting) for waiting in self.todo.values())

    def _most_in_flight(self) -> int:
        return sum(seat.place.depth for seat in self.seats.values())

    def _room(self) -> bool:
        spooled = sum(block.spooled_bytes for block in self.opened.values())
        most = self.settings.fleet.open_blocks
        return not self.opened or (len(self.opened) < most and spooled < self.settings.fleet.spool_gib * 2**30)

    def _open(self, block: Block) -> None:
        opened = OpenBlock(block, self.settings)
        self.opened[block.name] = opened
        tasks = opened.resume(self.standings(block.name))
        for key, unit in opened.units.items():
            if unit.finished and unit.standing.end is None:  # its writer was killed before it could say so
                self._done(opened, key, Outcome())
        self.say("opened", block=block.name, videos=len(block.entries), tasks=len(tasks))
        for task in tasks:
            self.todo[task.kind].append(task)
        self._pack_if_complete(opened)

    def _hand_out(self) -> None:
        """Gives every seat the most urgent task that it takes and that fits into its machine's memory, the emptiest seat first."""
        started: dict[str, list[Event]] = {}
        given: list[tuple[int, Task]] = []
        for depth in range(max(seat.place.depth for seat in self.seats.values())):
            for number, seat in self.seats.items():
                if seat.ready and len(seat.tasks) == depth and (task := self._next(seat)) is not None:
                    seat.tasks[task.key], seat.alone = task, not self._shares(task)
                    attempt = self.opened[task.block].units[task.key].standing.attempts + 1
                    facts = {"kind": task.kind, "key": task.key, "attempt": attempt, "node": seat.node}
                    started.setdefault(task.block, []).append({"event": "started", **facts})
                    given.append((number, task))
        for block, events in started.items():
            self._write(self.opened[block], events)
        for number, task in given:
            self.crew.submit(number, task)

    def _next(self, seat: SeatState) -> Task | None:
        for kind in _URGENCY:
            waiting = self.todo[kind]
            while waiting and self._spent(waiting[0]):
                waiting.popleft()
            if waiting and kind in seat.place.kinds and self._fits(seat, waiting[0]):
                return waiting.popleft()
        return None

    def _fits(self, seat: SeatState, task: Task) -> bool:
        """Bytes in flight on the seat's machine stay within bounds; one task always runs."""
        if seat.tasks and (seat.alone or not self._shares(task)):
            return False
        held = sum(t.num_bytes for s in self.seats.values() if s.node == seat.node for t in s.tasks.values())
        gib = self.settings.fleet.in_flight_gib or seat.memory_gib / 2
        return held == 0 or held + task.num_bytes <= gib * 2**30

    def _shares(self, task: Task) -> bool:
        """A worker may hold others beside it: a clip that nothing is held against."""
        standing = self.opened[task.block].units[task.key].standing
        return task.kind == "clip" and standing.attempts == 0 and not standing.suspected

    def _spent(self, task: Task) -> bool:
        """Quarantines what was begun too often without an answer: it may be what killed its drivers."""
        block = self.opened[task.block]
        standing = block.units[task.key].standing
        if task.kind == "pack" or standing.attempts < self.settings.fleet.attempts:
            return False
        fault = Fault(
            kind="died", message=f"begun {standing.attempts} times, and each time its driver died before the end"
        )
        self._end(block, task, fault, "quarantined")
        return True

    # What came of it

    def _take(self, number: int, outcome: Outcome) -> None:
        seat = self.seats[number]
        task = seat.tasks.pop(outcome.key, None)
        fault = outcome.fault
        if fault is not None and (fault.kind == "start_failed" or task is None):
            self._not_started(number, task, fault)
            return
        if outcome.value.get("gone"):
            self._start(number)
        self._start_failures = 0
        if task is None:
            seat.ready = True
            seat.node, seat.memory_gib = outcome.value["node"], outcome.value["memory_gib"]
            self.say("seated", seat=number, node=seat.node, seconds=round(outcome.seconds, 2))
        elif fault is None:
            self._watch("")
            self._done(self.opened[task.block], task.key, outcome)
        elif outcome.beside and fault.kind in _ANYBODYS:
            self._suspect(self.opened[task.block], task, outcome)
        else:
            self._failed(self.opened[task.block], task, fault)

    def _start(self, number: int) -> None:
        """What was in flight there is still answered for."""
        self.seats[number].ready = False
        self.crew.start(number, self.seats[number].place)

    def _not_started(self, number: int, task: Task | None, fault: Fault) -> None:
        """A worker that cannot load blames no clip; several in a row end the run."""
        if task is not None:
            self._write(self.opened[task.block], [{"event": "returned", "kind": task.kind, "key": task.key}])
            self.todo[task.kind].appendleft(task)
            if not self.seats[number].ready:  # another task of the seat has said so already
                return
        self._start_failures += fault.kind != "node_lost"
        self.say("start_failed", seat=number, message=fault.message, tail=fault.tail)
        refused = fault.kind == "start_failed" and not fault.signal
        if refused or self._start_failures >= _MOST_START_FAILURES:
            raise Hopeless(fault.message)
        self._start(number)

    def _done(self, block: OpenBlock, key: str, outcome: Outcome) -> None:
        unit = block.units[key]
        tasks = block.finish(key)
        event: dict[str, Any] = {"event": "done", "kind": unit.task.kind, "key": key, "uri": unit.uri}
        if unit.task.kind == "cut":
            slips = block.slips(key)
            screened = Counter(slip.reason.partition(":")[0] for slip in slips if slip.reason)
            event |= {"clips": len(slips), "screened": screened}
        self._write(block, [event | outcome.value | {"seconds": round(outcome.seconds, 3)}])
        for task in tasks:
            self.todo[task.kind].append(task)
        if unit.task.kind == "pack":
            self._commit(block)
        else:
            self._pack_if_complete(block)

    def _failed(self, block: OpenBlock, task: Task, fault: Fault) -> None:
        """Counts the fault and decides: once more, or never again."""
        fleet = self.settings.fleet
        told = asdict(fault) | {"class": fault.kind, "kind": task.kind}
        standing = self._write(block, [{"event": "fault", "key": task.key, **told}])
        self._watch(fault.kind, refused_video=task.kind == "cut" and fault.final)
        if fault.final:
            self._end(block, task, fault, "failed")
        elif standing.attempts >= fleet.attempts or standing.lost >= fleet.lost_attempts:
            self._end(block, task, fault, "quarantined")
        else:
            self.todo[task.kind].append(task)

    def _suspect(self, block: OpenBlock, task: Task, outcome: Outcome) -> None:
        """A worker died with several clips in flight: none has used up an attempt, each is tried again by itself."""
        assert outcome.fault is not None
        told = {"class": outcome.fault.kind, "message": outcome.fault.message, "beside": list(outcome.beside)}
        self._write(block, [{"event": "returned", "kind": task.kind, "key": task.key, **told}])
        self.todo[task.kind].append(task)

    def _end(self, block: OpenBlock, task: Task, fault: Fault, event: str) -> None:
        """Never again, unless `--retry` asks for it."""
        if task.kind == "pack":
            raise Hopeless(f"block {block.name} cannot be packed: {fault.message}")
        unit = block.units[task.key]
        reason = f"{fault.kind}: {fault.message}"
        ended = {
            "event": event,
            "kind": task.kind,
            "key": task.key,
            "uri": unit.uri,
            "class": fault.kind,
            "reason": reason,
        }
        if event == "quarantined":
            ended["where"] = files.join(self.out, "quarantine", f"{task.key}.json")
            facts = ended | {"task": task.body, **asdict(fault)}
            files.write_whole(ended["where"], json.dumps(facts, indent=1, ensure_ascii=False).encode())
        self._write(block, [ended])
        self._pack_if_complete(block)

    def _watch(self, fault: str, *, refused_video: bool = False) -> None:
        """Stops a hopeless run: one class of fault takes more than its share of the last tasks."""
        fleet = self.settings.fleet
        self._refused = self._refused + 1 if refused_video else 0
        if self._refused >= fleet.max_refused_videos:
            raise Hopeless(f"the last {self._refused} videos were refused, see `worldreel status {self.out}`")
        self._recent.append("" if fault == "refused" else fault)
        if len(self._recent) > fleet.fault_window:
            self._recent.popleft()
        worst, times = Counter(filter(None, self._recent)).most_common(1)[0] if any(self._recent) else ("", 0)
        if len(self._recent) == fleet.fault_window and times > fleet.max_fault_share * fleet.fault_window:
            raise Hopeless(
                f"{times} of the last {fleet.fault_window} tasks ended with the same fault ({worst}), "
                f"allowed are {fleet.max_fault_share:.0%}; see `worldreel status {self.out}`"
            )

    def _pack_if_complete(self, block: OpenBlock) -> None:
        if block.complete and not block.packing:
            self.todo["pack"].append(block.pack_task())

    def _commit(self, block: OpenBlock) -> None:
        """The shards are there: nothing of the block needs to be remembered."""
        self.committed += _counted(block)
        del self.opened[block.name]
        self.ledger.close(block.name)
        spool.empty(block.folder)
        self.say("committed", block=block.name)

    def _write(self, block: OpenBlock, events: list[Event]) -> Standing:
        """Into the ledger first, then into memory; the standing of the last."""
        self.ledger.write(block.name, events)
        for event in events:
            self.say(**{**event, "block": block.name})
        return [block.note(event) for event in events][-1]

    def _give_back(self) -> None:
        """What was begun but will not end here has not been tried."""
        for seat in self.seats.values():
            for task in seat.tasks.values():
                if task.block in self.opened:
                    event = {"event": "returned", "kind": task.kind, "key": task.key}
                    self._write(self.opened[task.block], [event])
            seat.tasks = {}
        self.ledger.close()


def _counted(block: OpenBlock) -> Funnel:
    return funnel.count(unit.standing for unit in block.units.values())
