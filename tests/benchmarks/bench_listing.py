"""A listing of 100,000 videos on a loopback S3 server: time and memory to plan it, and time until a resumed run hands out work.

python tests/benchmarks/bench_listing.py [--videos 100000]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pipelines")]

_SERVER = """
import sys, threading
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("bench", "us-east-1")
for number in range(int(sys.argv[1])):
    backend.put_object("bench", f"videos/{number // 1000:04d}/{number:07d}.mp4", b"")
print()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
"""Filled from within: a hundred thousand requests would only measure the server."""


def main() -> None:
    """Starts the server, then measures each step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--step", choices=("plan", "resume"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        {"plan": _plan, "resume": _resume}[options.step](options.out, options.videos)
        return
    command = [sys.executable, "-c", _SERVER, str(options.videos)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server,
    ):
        try:
            assert server.stdout is not None
            port = next(int(line) for line in server.stdout if line.strip().isdigit())
            access = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
            }
            for step in ("plan", "resume"):
                again = [sys.executable, __file__, "--step", step, "--out", folder, "--videos", str(options.videos)]
                subprocess.run(again, env=os.environ | access | {"AWS_EC2_METADATA_DISABLED": "true"}, check=True)
        finally:
            server.kill()


def _plan(out: str, videos: int) -> None:
    """Lists the bucket and writes the plan down."""
    from pipelines.plan import Plan
    from pipelines.recipes import AnnotateRecipe

    began = time.monotonic()
    listing = Plan(out, "s3://bench/videos", "run", AnnotateRecipe(), 16)
    blocks = sum(1 for _ in listing.blocks())
    assert listing.num_videos == videos
    print(f"planned {videos} videos in {blocks} blocks: {time.monotonic() - began:.1f} s, {_peak_mib()} MiB at most")


def _resume(out: str, videos: int) -> None:
    """As much as 99 % of the run is done: how long until the first task of the rest is handed to a worker."""
    import quick

    from pipelines import annotation
    from pipelines.ledger import Ledger

    class Handed(Exception):
        """The first task."""

    class First(quick.Local):
        def submit(self, number: int, task: Any) -> None:
            raise Handed

    fresh = Path(out) / "fresh"
    recipe = quick.recipe(block_videos=16)
    _annotated(fresh, recipe, Ledger, videos)
    began = time.monotonic()
    try:
        annotation.annotate("s3://bench/videos", str(fresh), recipe, crew=lambda: (First(), quick.seats(recipe, 1)))
    except Handed:
        print(f"resumed {videos} videos: {time.monotonic() - began:.1f} s to the first task, {_peak_mib()} MiB at most")


def _annotated(out: Path, recipe: Any, book: Any, videos: int) -> None:
    """What such a run leaves: plan, ledger (four clips a video), marks of commits."""
    from pipelines import plan
    from shared import knobs

    run = plan.run_name("s3://bench/videos", recipe)
    listing = plan.Plan(str(out), "s3://bench/videos", run, recipe, 16)
    (out / "shards").mkdir(parents=True)
    (out / "recipe.yaml").write_text(knobs.dump(recipe))
    ledger = book(str(out))
    blocks = list(listing.blocks())
    for block in blocks[: int(0.99 * len(blocks))]:
        events: list[dict[str, Any]] = []
        for entry in block.entries:
            events += _events("cut", entry.uri, {"clips": 4, "screened": {}})
            for number in range(4):
                events += _events("clip", f"{entry.uri}{number}", {"wall": {"decode": 0.1}, "cpu": {}, "bytes": 1000})
        events += _events("pack", block.name, {"shards": 1, "annotated": 64, "screened": 0, "failed": 0})
        ledger.write(block.name, events)
        ledger.close(block.name)
        (out / "shards" / f"{block.name}-00.parquet").touch()


def _events(kind: str, key: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"event": "started", "kind": kind, "key": key}, {"event": "done", "kind": kind, "key": key, **value}]


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
