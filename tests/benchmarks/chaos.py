"""Kills everything, many times, and looks whether anything was lost. `make chaos`: six to ten minutes on two quiet cores.

1. The same shards for 1, 2 and 4 workers, on local processes and on Ray, with and without clips that overlap in a worker; each clip
   takes a random time, so that they end in any order. (About 2 minutes.)
2. 30 videos, 60 clips: 100 SIGKILLs of workers, of the actors that guard them, of whole machines and of drivers, over repeated
   runs. Then: every clip once, shards byte-identical to an undisturbed run, nothing left behind, no attempt uncounted.
3. 300 mutated video files among 20 good ones: no hang, no crash, no good clip lost, each bad file named, memory bounded.

    python tests/benchmarks/chaos.py [--kills 100] [--mutants 300] [--folder DIR]

Exit status 0 only if nothing was wrong.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pipelines")]
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # everything stays on 127.0.0.1
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import chaos as kit  # noqa: E402
import mutants  # noqa: E402
import quick  # noqa: E402

from shared import shards  # noqa: E402

KNOBS = {"attempts": 1000, "lost_attempts": 1000, "block_videos": 10, "fault_window": 100_000, "clip_timeout_s": 60.0}
"""Kills are nobody's fault here: nothing may end in quarantine."""


def main() -> int:
    """Runs all three and prints a table."""
    options = _options()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="worldreel-chaos-"))
    videos = folder / "videos"
    for seed in range(30):
        quick.video(videos / f"nod_{seed:02d}.mp4", seed)
    wrong = [
        *_same_for_any_crew(videos, folder),
        *_kills(videos, folder, options.kills, options.seed),
        *_mutants(folder, options.mutants),
    ]
    print("\n".join(f"WRONG: {line}" for line in wrong) or "nothing was lost")
    if not options.folder:
        shutil.rmtree(folder)
    return bool(wrong)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work, and to leave everything")
    return parser.parse_args()


def _same_for_any_crew(videos: Path, folder: Path) -> list[str]:
    """The undisturbed runs."""
    wrong = []
    for crew, seats in (("local", 1), ("local", 2), ("local", 4), ("ray", 2), ("ray", 4)):
        out = folder / f"{crew}-{seats}"
        began = time.monotonic()
        status = kit.drive(videos, out, crew, seats, KNOBS | {"overlap": seats > 1}).wait()
        print(f"undisturbed, {crew}, {seats} workers: {time.monotonic() - began:.1f} s, exit status {status}")
        if status or kit.hashes(out) != kit.hashes(folder / "local-1"):
            wrong.append(f"{crew} with {seats} workers gives other shards")
    return wrong


def _kills(videos: Path, folder: Path, kills: int, seed: int) -> list[str]:
    """Half of the kills on local processes, half on a Ray cluster of machines that come and go."""
    rng = random.Random(seed)
    calm = folder / "local-1"
    done: Counter[str] = Counter()
    wrong = []
    run = 0
    while done.total() < kills // 2:
        out = folder / f"killed-local-{run}"
        _disturbed(videos, out, "local", rng, done, kills // 2, None)
        wrong += [f"{out.name}: {line}" for line in kit.verdict(out, calm)]
        run += 1
    cluster = _Cluster()
    while done.total() < kills:
        out = folder / f"killed-ray-{run}"
        _disturbed(videos, out, "ray", rng, done, kills, cluster)
        wrong += [f"{out.name}: {line}" for line in kit.verdict(out, calm)]
        run += 1
    cluster.close()
    print(f"{done.total()} kills in {run} runs: {dict(done)}")
    return wrong


def _disturbed(
    videos: Path, out: Path, crew: str, rng: random.Random, done: Counter[str], most: int, cluster: "_Cluster | None"
) -> None:
    """One run, again and again until it ends by itself."""
    began, before = time.monotonic(), done.total()
    address = cluster.address if cluster else ""
    knobs = KNOBS | {"overlap": True}
    driver, since = kit.drive(videos, out, crew, 2, knobs, address), time.time()
    while (status := kit.wait(driver, rng.uniform(0.2, 2.0))) is None or status:
        if status is not None:
            driver, since = kit.drive(videos, out, crew, 2, knobs, address), time.time()
        elif done.total() < most and (kit.in_flight(out, since) or rng.random() < 0.1):  # mostly in the middle of work
            victim = rng.choices(("worker", "actor", "machine", "driver"), (6, 2 * bool(cluster), bool(cluster), 2))[0]
            done[victim] += _kill(victim, driver, rng, cluster)
    left = {key: dict(events) for key, events in kit.attempts(out).items() if events["started"] > 1}
    print(
        f"{out.name}: {done.total() - before} kills, {time.monotonic() - began:.1f} s, {len(left)} tasks begun more than once"
    )


def _kill(victim: str, driver: Any, rng: random.Random, cluster: "_Cluster | None") -> int:
    """1 if something was there to be killed."""
    if victim == "driver":
        driver.kill()
        driver.wait()
        return 1
    if victim == "machine":
        assert cluster is not None
        cluster.replace(rng)
        return 1
    below = kit.below(cluster.pid if cluster else driver.pid)
    mark = "pipelines.serve" if victim == "worker" else "ray::_SeatActor"
    return kit.kill_one([pid for pid, command in below.items() if mark in command], rng)


class _Cluster:
    """A head without CPUs, and one machine with two that is killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._machine = self._add()
        self.address = self._cluster.address
        self.pid = os.getpid()

    def replace(self, rng: random.Random) -> None:
        """All processes of the machine die at once; another joins."""
        raylet = self._machine.all_processes["raylet"][0].process.pid
        for pid in (raylet, *kit.below(raylet)):
            kit.kill_one([pid], rng)
        self._machine = self._add()

    def close(self) -> None:
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=80_000_000)


def _mutants(folder: Path, count: int) -> list[str]:
    """Bad files among good ones."""
    source, out = folder / "mutated", folder / "mutated-out"
    good = [quick.video(source / f"good_{seed:02d}.mp4", seed) for seed in range(20)]
    names = mutants.folder(source, [video.read_bytes() for video in good], count)
    began, most = time.monotonic(), 0
    driver = kit.drive(source, out, "local", 2, KNOBS | {"worker_gib": 1.5, "attempts": 2})
    while (status := kit.wait(driver, 0.5)) is None:
        most = max([most, *map(_rss_mib, kit.below(driver.pid))])
        if time.monotonic() - began > 1800:
            os.kill(driver.pid, signal.SIGKILL)
            return ["the run over mutated files hangs"]
    rows = shards.read_index(out).to_pylist()
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_file.setdefault(Path(row["source"]).name, []).append(row)
    statuses = Counter(row["status"] for name in names for row in by_file.get(name, []))
    seconds = time.monotonic() - began
    print(
        f"{count} mutated files: {seconds:.1f} s, exit status {status}, workers' memory at most {most} MiB, {dict(statuses)}"
    )
    wrong = [] if status == 0 else [f"the run over mutated files ended with status {status}"]
    wrong += [
        f"{video.name} lost clips" for video in good if [r["status"] for r in by_file[video.name]] != ["annotated"] * 2
    ]
    wrong += [f"{name} is nowhere" for name in names if name not in by_file]
    wrong += [f"{row['source']}: no reason" for row in rows if row["status"] != "annotated" and not row["reason"]]
    return wrong + [f"left behind: {path}" for path in kit.leftovers(out)]


def _rss_mib(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
