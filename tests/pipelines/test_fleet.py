"""Seats, crews and places: every way for a worker to end, and what is said of it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick

from pipelines import fleet, places
from pipelines.fleet import Crew, Inline, Local, Place, RayActors
from pipelines.recipes import AnnotateRecipe
from pipelines.seat import Seat
from pipelines.tasks import Fault, Job, Outcome, Task


def _job(**more: Any) -> Job:
    return Job(factory="wild:Wild", path=(str(quick.HERE),), worker_gib=1.5, **more)


def _task(name: str, timeout_s: float = 20.0, **body: Any) -> Task:
    return Task(kind="clip", key=f"{name}.mp4", block="run-000000", body=body, timeout_s=timeout_s)


@pytest.fixture(scope="module")
def seat() -> Iterator[Seat]:
    seat = Seat(_job(threads=3))
    yield seat
    seat.close()


@pytest.mark.parametrize(
    ("name", "timeout_s", "kind", "signal", "said"),
    [
        ("raise_a", 20.0, "raised", "", "RuntimeError: a bug"),
        ("refuse_a", 20.0, "refused", "", "its flow is flat"),
        ("segv_a", 20.0, "died", "SIGSEGV", "ended its worker by SIGSEGV"),
        ("kill_a", 20.0, "died", "SIGKILL", "ended its worker by SIGKILL"),
        ("hang_a", 1.0, "timeout", "SIGKILL", "did not end within 1 s"),
        ("gil_a", 1.0, "timeout", "SIGKILL", "did not end within 1 s"),
        ("memory_a", 60.0, "out_of_memory", "SIGKILL", "MiB of memory, allowed are 1536"),
        ("device_a", 20.0, "died", "", "ended its worker with exit status 1"),
    ],
)
def test_every_end_is_named_and_the_next_task_is_served(
    seat: Seat, name: str, timeout_s: float, kind: str, signal: str, said: str
) -> None:
    fault = seat.do(_task(name, timeout_s)).fault
    assert fault is not None
    assert (fault.kind, fault.signal) == (kind, signal)
    assert said in fault.message
    assert fault.final == (kind == "refused")
    if kind == "died" and signal == "SIGSEGV":
        assert "last words" in fault.tail
        assert "misbehave" in fault.tail  # the Python stack at the crash
    if kind == "out_of_memory":
        assert fault.peak_rss_mib > 1536
    after = seat.do(_task("fine"))
    assert after.fault is None
    assert after.value["threads"] == "3"


def test_what_a_worker_started_dies_with_it(seat: Seat, tmp_path: Path) -> None:
    fault = seat.do(_task("child", 1.5, pid=str(tmp_path / "pid"))).fault
    assert fault is not None
    assert fault.kind == "timeout"
    child = int((tmp_path / "pid").read_text())
    _until(lambda: not _alive(child))


def test_a_worker_dies_with_its_seat(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.seat import Seat; from pipelines.tasks import Job, Task;"
        f"s = Seat(Job(factory='wild:Wild', path=({str(quick.HERE)!r},)));"
        "t = Task(kind='clip', key='fine.mp4', block='b', timeout_s=20);"
        "print(s.do(t).value['pid'], flush=True); s.do(Task(kind='clip', key='gil_a.mp4', block='b', timeout_s=100))"
    )
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        assert _alive(worker)
        driver.kill()
    _until(lambda: not _alive(worker))


def test_workers_are_recycled() -> None:
    seat = Seat(_job(recycle_after=2))
    pids = [seat.do(_task("fine")).value["pid"] for _ in range(5)]
    seat.close()
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"refuse": "no weights at x"}, "no weights at x"),
        ({"hang": True}, "cannot start: loading did not end within 1 s"),
    ],
)
def test_a_worker_that_cannot_load_blames_no_clip(arguments: dict[str, Any], said: str) -> None:
    seat = Seat(_job(arguments=arguments, start_timeout_s=1.0))
    fault = seat.do(_task("fine")).fault
    seat.close()
    assert fault is not None
    assert fault.kind == "start_failed"
    assert said in fault.message


@pytest.fixture(scope="module")
def overlapping() -> Iterator[Seat]:
    seat = Seat(Job(factory="wild:Staged", path=(str(quick.HERE),), worker_gib=1.5, overlap=True))
    assert seat.start().fault is None
    yield seat
    seat.close()


def _outcomes(seat: Seat, tasks: list[Task]) -> list[Outcome]:
    return [order.result() for order in [seat.order(task) for task in tasks]]


def test_the_next_clip_is_loaded_while_one_is_computed(overlapping: Seat) -> None:
    outcomes = _outcomes(overlapping, [_task("a", after=3), _task("b"), _task("raise_c", stage="load"), _task("d")])
    assert [outcome.fault and outcome.fault.kind for outcome in outcomes] == [None, None, "raised", None]
    assert [outcome.key for outcome in outcomes] == ["a.mp4", "b.mp4", "raise_c.mp4", "d.mp4"]
    assert all(outcome.beside == () for outcome in outcomes)


@pytest.mark.parametrize(
    ("guilty", "timeout_s", "kind"),
    [("segv_b", 60.0, "died"), ("gil_b", 1.5, "timeout"), ("memory_b", 60.0, "out_of_memory")],
)
def test_of_several_in_flight_each_may_be_to_blame(overlapping: Seat, guilty: str, timeout_s: float, kind: str) -> None:
    tasks = [_task("hang_a", timeout_s), _task(guilty, timeout_s, stage="load")]
    first, second = _outcomes(overlapping, tasks)
    assert first.fault is not None
    assert second.fault is not None
    assert (first.fault.kind, first.beside) == (kind, (f"{guilty}.mp4",))
    assert (second.fault.kind, second.beside) == (kind, ("hang_a.mp4",))
    assert overlapping.do(_task("fine")).fault is None


def test_a_clip_that_waits_for_the_one_before_it_is_not_late(overlapping: Seat) -> None:
    outcomes = _outcomes(overlapping, [_task(f"nap_{letter}", 8.0) for letter in "abc"])
    assert [outcome.fault for outcome in outcomes] == [None] * 3
    assert outcomes[-1].seconds > 8


def test_a_worker_that_overlaps_is_recycled_between_clips() -> None:
    seat = Seat(Job(factory="wild:Staged", path=(str(quick.HERE),), recycle_after=2, overlap=True))
    pids = [outcome.value["pid"] for outcome in _outcomes(seat, [_task(letter) for letter in "abcde"])]
    seat.close()
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def _served(crew: Crew, tasks: list[Task], seats: int) -> dict[str, Outcome]:
    """What came of each task, one after the other on any seat, seats that are gone started again."""
    place = Place(job=_job(), kinds=frozenset({"clip"}), cpus=0.1, gpus=0.0)
    for number in range(seats):
        crew.start(number, place)
    todo, busy, found = list(tasks), {}, {}
    starting = set(range(seats))
    while todo or busy or starting:
        for number, outcome in crew.wait(0.5):
            busy.pop(number, None)
            starting.discard(number)
            if outcome.key:
                found[outcome.key.removesuffix(".mp4")] = outcome
            if outcome.value.get("gone"):
                crew.start(number, place)
                starting.add(number)
            elif todo:
                busy[number] = todo.pop(0)
                crew.submit(number, busy[number])
    return found


_NAMES = ["a", "segv_b", "c", "gil_d", "e", "raise_f", "g"]


def _kinds(found: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.fault.kind if outcome.fault else "" for name, outcome in found.items()}


_EXPECTED = {"a": "", "segv_b": "died", "c": "", "gil_d": "timeout", "e": "", "raise_f": "raised", "g": ""}


def test_local_processes_lose_only_what_is_at_fault() -> None:
    crew = Local()
    found = _served(crew, [_task(name, 3.0) for name in _NAMES], 2)
    crew.close()
    assert _kinds(found) == _EXPECTED


def test_in_this_process_errors_are_outcomes() -> None:
    import sys

    sys.path.insert(0, str(quick.HERE))
    crew = Inline()
    found = _served(crew, [_task("a"), _task("raise_b"), _task("refuse_c")], 1)
    assert _kinds(found) == {"a": "", "raise_b": "raised", "refuse_c": "refused"}


@pytest.fixture(scope="module")
def ray_actors() -> Iterator[RayActors]:
    crew = RayActors()
    yield crew
    crew.close()


def test_ray_actors_lose_only_what_is_at_fault(ray_actors: RayActors) -> None:
    found = _served(ray_actors, [_task(name, 3.0) for name in _NAMES], 2)
    assert _kinds(found) == _EXPECTED


def test_our_ray_listens_on_this_machine_only(ray_actors: RayActors) -> None:
    import ray

    assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"


def test_an_actor_that_is_killed_is_a_death_and_not_a_lost_machine(ray_actors: RayActors) -> None:
    import signal

    job = Job(factory="wild:Staged", path=(str(quick.HERE),), overlap=True)
    ray_actors.start(7, Place(job=job, kinds=frozenset({"clip"}), cpus=0.1, gpus=0.0, depth=2))
    (started,) = _awaited(ray_actors)
    ray_actors.submit(7, _task("hang_a", 60.0))
    ray_actors.submit(7, _task("hang_b", 60.0))
    time.sleep(0.5)
    os.kill(started.value["pid"], signal.SIGKILL)
    outcomes = _awaited(ray_actors)
    assert [outcome.value for outcome in outcomes] == [{"gone": True}, {}]
    assert {(outcome.key, outcome.beside) for outcome in outcomes} == {
        ("hang_a.mp4", ("hang_b.mp4",)),
        ("hang_b.mp4", ("hang_a.mp4",)),
    }
    for outcome in outcomes:
        tail = outcome.fault.tail if outcome.fault else ""
        assert outcome.fault == Fault(kind="died", message="the actor that holds its worker died", tail=tail)


def _awaited(crew: Crew) -> list[Outcome]:
    while not (outcomes := crew.wait(1.0)):
        pass
    return [outcome for _, outcome in outcomes]


def _recipe(gpus: float = 0.0, **knobs: Any) -> AnnotateRecipe:
    return AnnotateRecipe.model_validate({"depth": {"kind": "multiview", "gpus": gpus}, "fleet": knobs})


def test_places_are_counted_by_machine() -> None:
    two = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}]
    assert len(places.fitting(_recipe(), [{"CPU": 4.0}])) == 4
    seats = places.fitting(_recipe(gpus=1.0), two)
    assert [seat.gpus for seat in seats if "clip" in seat.kinds] == [1.0] * 3
    assert len([seat for seat in seats if "cut" in seat.kinds]) == 8  # the CPUs left
    shared = places.fitting(_recipe(gpus=1.0, workers_per_gpu=2, screeners=1), two)
    assert [(seat.gpus, sorted(seat.kinds)) for seat in shared] == [(0.5, ["clip"])] * 6 + [(0.0, ["cut", "pack"])]
    assert {(seat.gpus, seat.depth, seat.job.overlap) for seat in seats} == {(1.0, 3, True), (0.0, 1, False)}
    assert {seat.depth for seat in places.fitting(_recipe(gpus=1.0, overlap=False), two)} == {1}
    assert {seat.depth for seat in places.fitting(_recipe(overlap=True), two)} == {3}
    lone = places.fitting(_recipe(gpus=1.0), [{"CPU": 1.0, "GPU": 1.0}])
    assert [sorted(seat.kinds) for seat in lone] == [["clip", "cut", "pack"]]  # no CPU left: the worker does all


@pytest.mark.parametrize(
    ("recipe", "machines", "message"),
    [
        (_recipe(gpus=1.0), [{"CPU": 2.0}], "asks for 1 CPUs and 1 GPUs, but there is: 2 CPUs and 0 GPUs"),
        (_recipe(cpus=4.0), [{"CPU": 2.0}, {"CPU": 2.0}], "asks for 4 CPUs"),
        (_recipe(workers=3), [{"CPU": 2.0}], r"fleet.workers is 3 .* only 2 fit"),
    ],
)
def test_what_does_not_fit_is_said_before_the_start(
    recipe: AnnotateRecipe, machines: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        places.fitting(recipe, machines)


def test_a_cluster_may_grow() -> None:
    assert len(places.fitting(_recipe(workers=3), [{"CPU": 2.0}], grows=True)) == 3
    seats = places.fitting(_recipe(gpus=1.0, workers=2), [{"CPU": 0.0}], grows=True)
    found = [(seat.gpus, sorted(seat.kinds)) for seat in seats]  # whether a screener will find room is not known yet
    assert found == [(1.0, ["clip", "cut", "pack"])] * 2 + [(0.0, ["cut", "pack"])] * 2


def test_what_is_shipped_to_a_cluster_is_our_packages_alone() -> None:
    shipped = [Path(folder) for folder in fleet.runtime_env()["py_modules"]]
    assert [folder.name for folder in shipped] == ["annotate", "curate", "pipelines", "shared", "train"]
    assert all((folder / "__init__.py").is_file() for folder in shipped)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(holds: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_documented_cluster_is_one_that_ray_accepts() -> None:
    import yaml
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    cluster = yaml.safe_load((Path(fleet.__file__).parent / "cluster.yaml").read_text())
    validate_config(fillout_defaults(cluster))
    assert cluster["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_a_worker_that_only_cuts_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    video = quick.video(tmp_path / "a.mp4", 1)
    code = (
        "import sys; from pipelines import work; from pipelines.recipes import AnnotateRecipe;"
        "recipe = AnnotateRecipe().model_dump(mode='json');"
        "worker = work.Worker(recipe=recipe, annotates=False, threads=1);"
        f"entry = dict(uri={str(video)!r}, dataset='video', caption='', licence='');"
        f"worker._cut(entry=entry, to={str(tmp_path / 'a.cut.json')!r});"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert (tmp_path / "a.cut.json").exists()
