"""A Ray cluster that others started, of two machines, one of which vanishes in mid-run."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chaos
import pytest
import quick

from pipelines import ledger
from pipelines.fleet import RayActors

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One machine, without room for workers: those come and go."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all of it stays on 127.0.0.1
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    yield found
    found.shutdown()


def test_a_machine_that_vanishes_costs_no_clip(cluster: Any, tmp_path: Path) -> None:
    for seed in range(6):
        quick.video(tmp_path / "in" / f"v{seed}.mp4", seed)
    slow = quick.video(tmp_path / "in" / "nap_z.mp4", 9)
    knobs = {"attempts": 1, "block_videos": 4, "clip_timeout_s": 60.0}  # a vanished machine uses up no attempt
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert chaos.drive(slow.parent, calm, "local", 2, knobs).wait(timeout=120) == 0

    driver = chaos.drive(slow.parent, out, "ray", 2, knobs, cluster.address)
    _until(lambda: (out / "events.jsonl").exists())
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    _until(lambda: "started" in _events(out, "clip"))
    raylet = node.all_processes["raylet"][0].process.pid
    for process in (raylet, *chaos.below(raylet)):  # all of a machine at once
        os.kill(process, signal.SIGKILL)
    _until(lambda: "fault" in _events(out, "clip"))
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    assert driver.wait(timeout=180) == 0, (tmp_path / "out.log").read_text()
    assert chaos.verdict(out, calm) == []
    faults = [e for _, events in ledger.read(str(out)) for e in events if e["event"] == "fault"]
    assert {fault["class"] for fault in faults} == {"node_lost"}


def test_an_address_where_no_cluster_is_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--address 127\.0\.0\.1:1: no Ray cluster answers"):
        RayActors("127.0.0.1:1")


def _events(out: Path, kind: str) -> list[str]:
    return [e["event"] for _, events in ledger.read(str(out)) for e in events if e.get("kind") == kind]


def _until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)
