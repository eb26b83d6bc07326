"""Motion scores, verdicts and CPU seconds per clip: ours beside the published filters of data-juicer and NeMo-Curator.

    python tests/benchmarks/bench_motion_filters.py [--theirs FOLDER] VIDEO ...

Each video counts as one clip. A still one, the first picture of the first video held for 5 s, is made here: it should be refused.
FOLDER is the site-packages of another environment with `pip install --no-deps py-data-juicer nemo-curator`. Only the modules of
the two filters are loaded, unchanged and with their own defaults: importing the packages by name asks for far more than they use.
What cannot be imported is said and left out. One thread each; CPU seconds of this process, decoding included.
"""

import argparse
import importlib
import inspect
import io
import itertools
import sys
import tempfile
import time
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from annotate.screen import PUBLISHED, Meter, Screen
from shared import video

Row = tuple[str, bool]
"""A score in words, and whether the clip is kept."""


def ours(path: Path) -> dict[str, Row]:
    """Every score of one decode; verdicts of the screen that ships (frozen or not) and of SpatialVID's range of motion2."""
    found = video.probe(str(path))
    meter = Meter(Screen().sample_seconds)
    found = video.scan(found, meter.add)
    scores = meter.scores(0, found.num_frames - 1, found)
    moves = Screen(luminance=None, contrast=None)
    range_2_14 = Screen(luminance=None, contrast=None, frozen=None, motion2=PUBLISHED.motion2)
    return {
        "ours: flow": (f"{scores['motion']:.2f} px, {scores['frozen']:.0%} frozen", not moves.reason(scores)),
        "ours: motion2 in 2-14": (f"{scores['motion2']:.2f}", not range_2_14.reason(scores)),
    }


def data_juicer(size: int | None) -> Callable[[Path], dict[str, Row]]:
    """VideoMotionScoreFilter: mean Farneback flow of pictures 0.5 s apart, at least 0.25 px by default.

    Made without its constructor, whose base class loads the whole framework; its defaults are read off the signature.
    """
    kind = importlib.import_module("data_juicer.ops.filter.video_motion_score_filter").VideoMotionScoreFilter
    defaults = {name: known.default for name, known in inspect.signature(kind.__init__).parameters.items()}
    check = kind.__new__(kind)
    vars(check).update({name: value for name, value in defaults.items() if value is not inspect.Parameter.empty})
    check.size = None if size is None else (size,)
    check.extra_kwargs = dict(kind._default_kwargs)
    check.setup_model()
    name = f"data-juicer, {'source size' if size is None else f'short side {size}'}"

    def measured(path: Path) -> dict[str, Row]:
        score = float(check._compute_motion_scores_from_video(str(path))[0])
        return {name: (f"{score:.2f} px", check.min_score <= score <= check.max_score)}

    return measured


def nemo() -> Callable[[Path], dict[str, Row]]:
    """Motion vectors of the first half at 2 fps: refused below a mean of 0.00098 or where a 256-px patch shows none."""
    backend = importlib.import_module("nemo_curator.stages.video.filtering.motion_vector_backend")

    def measured(path: Path) -> dict[str, Row]:
        name = "NeMo-Curator"
        try:
            decoded = backend.decode_for_motion(io.BytesIO(path.read_bytes()), thread_count=1)
        except backend.VideoResolutionTooSmallError:
            return {name: ("refused: a side is below 256 px", False)}
        except Exception as error:  # their stage does the same: any error refuses the clip
            return {name: (f"{type(error).__name__}: {error}"[:60], False)}
        if not decoded.frames:
            return {name: ("no motion vectors", False)}
        found = backend.check_if_small_motion(decoded.frames, decoded.frame_size, batch_size=16)
        score = f"mean {found.global_mean:.5f}, least patch {found.per_patch_min_256:.6f}"
        return {name: (score, not found.is_small_motion)}

    return measured


def bare_packages(folder: Path) -> None:
    """The modules of the two packages become importable without what their `__init__` files load."""
    sys.path.append(str(folder))
    for leaf in ("data_juicer.ops.filter", "nemo_curator.stages.video.filtering"):
        for name in itertools.accumulate(leaf.split("."), "{}.{}".format):
            package = types.ModuleType(name)
            package.__path__ = [str(folder / name.replace(".", "/"))]
            sys.modules[name] = package


def theirs(folder: Path | None) -> list[Callable[[Path], dict[str, Row]]]:
    if folder is None:
        print("no --theirs: data-juicer and NeMo-Curator are not measured")
        return []
    bare_packages(folder)
    found = []
    for make in (lambda: data_juicer(None), lambda: data_juicer(360), nemo):
        try:
            found.append(make())
        except ImportError as error:
            print(f"not measured: {error}")
    return found


def still(source: Path, folder: Path) -> Path:
    sys.path.append(str(Path(__file__).parents[1]))
    import videos  # the writer of test videos

    found = video.probe(str(source))
    picture = next(iter(video.frames(found)))[1]
    path = folder / "still.mp4"
    videos.write(path, itertools.repeat(picture, 125), fps=Fraction(25), options={"crf": "23", "preset": "medium"})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", type=Path)
    parser.add_argument("videos", nargs="+", type=Path)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    filters: list[Callable[[Path], dict[str, Row]]] = [ours, *theirs(asked.theirs)]
    total: dict[str, float] = {}
    print(f"OpenCV {cv2.__version__}, torch {torch.__version__}, numpy {np.__version__}; one thread")
    with tempfile.TemporaryDirectory() as folder:
        for path in [still(asked.videos[0], Path(folder)), *asked.videos]:
            known = video.probe(str(path))
            print(f"\n{path.name}: {known.width} x {known.height}, {known.num_frames / known.fps:.1f} s", flush=True)
            for measure in filters:
                _one(measure, path, total)
    print("\ntogether: " + "; ".join(f"{name} {seconds:.1f} CPU-s" for name, seconds in total.items()))


def _one(measure: Callable[[Path], Any], path: Path, total: dict[str, float]) -> None:
    start = time.process_time()
    rows = measure(path)
    spent = time.process_time() - start
    for name, (score, kept) in rows.items():
        print(f"  {name:28} {'kept   ' if kept else 'refused'} {spent:7.2f} CPU-s  {score}", flush=True)
    name = next(iter(rows))
    total[name] = total.get(name, 0.0) + spent


if __name__ == "__main__":
    main()
