"""The embedded annotators against exact truth: the table that says whether the labels can be trained on.

    python tests/benchmarks/bench_labels.py [--only NAMES] [--focals] [--colmap] [--json FILE] [--clips PATHS]

Clips: the closed-form scenes, and `../shared/data/truth/*.mp4` as encoded where they are; or those of PATHS: videos, folders of
them, annotated runs whose labels are true (`worldreel annotate mujoco:3 TRUE`). A video's truth is the `.npz` of its name beside
it, in the layout of `pipelines/truth.py`; videos without one get the table of `bench_real.py`. CPU seconds a frame are those of
cameras, depth and motion in one thread, the flow they ask for included; flow between adjacent and key frames is filled before, as
in a run.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import bench_real
import scene

from pipelines import truth as truths
from pipelines.evaluate import evaluate_clip
from pipelines.sources import VIDEO_SUFFIXES
from pipelines.truth import Truth
from shared import files, shards, video
from shared.clip import AnnotatedClip, Clip

FOCALS_PX = (220.0, 360.0, 430.0)
FOCAL_KINDS = ("lateral", "orbit", "dolly", "follow", "handheld")
TRUTH = Path(__file__).parents[3] / "shared" / "data" / "truth"
COLUMNS = {
    "ATE %": ("cameras.ate_percent", "{:.3f}"),
    "RRE °": ("cameras.rpe_rotation_deg", "{:.4f}"),
    "f %": ("cameras.focal_error_percent", "{:.1f}"),
    "AbsRel": ("static_depth.abs_rel", "{:.3f}"),
    "cover": ("static_depth.coverage", "{:.2f}"),
    "IoU": ("dynamic.iou", "{:.2f}"),
    "EPE3D": ("scene_flow.epe3d", "{:.3f}"),
    "kept": ("scene_flow.kept", "{:.2f}"),
    "s/frame": ("cpu_s_per_frame", "{:.3f}"),
    "colmap ATE %": ("colmap.ate_percent", "{:.3f}"),
    "colmap f %": ("colmap.focal_error_percent", "{:.1f}"),
    "colmap s/frame": ("colmap.cpu_s_per_frame", "{:.2f}"),
    "masked ATE %": ("masked.ate_percent", "{:.3f}"),
    "masked f %": ("masked.focal_error_percent", "{:.1f}"),
}


def main() -> None:
    """Print a line a clip as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of clips, such as orbit or handheld-430 or mj_lateral")
    parser.add_argument("--focals", action="store_true", help="also with true focal lengths of 220, 360 and 430 px")
    parser.add_argument(
        "--colmap", action="store_true", help="pycolmap's global mapper beside it (extra second-opinion)"
    )
    parser.add_argument("--clips", nargs="+", metavar="PATH", help="these alone: videos, folders, true runs")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with_truth, without = brought(asked.clips) if asked.clips else (clips(asked.focals, asked.only), [])
    found = print_table(with_truth, asked.colmap)
    if without:
        found |= bench_real.print_table(without)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def print_table(wanted: Iterable[tuple[str, AnnotatedClip, Truth]], with_colmap: bool) -> dict[str, dict[str, Any]]:
    """Label and judge each clip; returns every number of each."""
    found: dict[str, dict[str, Any]] = {}
    for name, clip, truth in wanted:
        if not found:
            columns = "".join(f"{column:>{width(column)}}" for column in shown(with_colmap))
            print(f"{'clip':20}{columns}  flags")
        labeled, seconds = bench_real.label(clip)
        found[name] = measure(labeled, truth, seconds)
        if with_colmap:
            assert labeled.motion is not None
            found[name] |= colmap("colmap", clip, truth) | colmap("masked", clip, truth, labeled.motion.dynamic)
        print(line(name, found[name], with_colmap), flush=True)
    return found


def clips(focals: bool, only: list[str] | None) -> Iterator[tuple[str, AnnotatedClip, Truth]]:
    """Name, bare pixels, truth."""
    wanted = [(kind, 300.0) for kind in scene.KINDS]
    wanted += [(kind, focal) for kind in FOCAL_KINDS for focal in FOCALS_PX] if focals else []
    for kind, focal in wanted:
        name = kind if focal == 300 else f"{kind}-{focal:.0f}"
        if not only or name in only:
            true = scene.clip(kind, focal=focal)
            yield name, bare(true), truths.from_clip(true)
    for path in sorted(TRUTH.glob("*.mp4")):
        if not only or path.stem in only:
            yield path.stem, *encoded(path)


def brought(places: list[str]) -> tuple[Iterator[tuple[str, AnnotatedClip, Truth]], list[Path]]:
    """Clips of these places that have truth, read one by one, and the videos that have none."""
    runs, pairs, alone = [], [], []
    for place in places:
        if not files.exists(place):
            sys.exit(f"{place}: no such file or folder")
        videos = [Path(uri) for uri in files.list_files(place, VIDEO_SUFFIXES)]
        if not videos and not any(files.list_files(place, (".parquet",))):
            sys.exit(f"{place}: holds neither a video nor an annotated run")
        runs += [] if videos else [place]
        pairs += [path for path in videos if path.with_suffix(".npz").exists()]
        alone += [path for path in videos if not path.with_suffix(".npz").exists()]
    return itertools.chain(((path.stem, *encoded(path)) for path in pairs), *map(true_clips, runs)), alone


def true_clips(run: str) -> Iterator[tuple[str, AnnotatedClip, Truth]]:
    for true in shards.read_clips(run):
        yield truths.stem(true.source), bare(true), truths.from_clip(true)


def bare(clip: Clip) -> AnnotatedClip:
    """Only what a decoder would give."""
    return AnnotatedClip(id=clip.id, rgb=clip.rgb, fps=clip.fps, source=clip.source, frames=clip.frames)


def encoded(path: Path) -> tuple[AnnotatedClip, Truth]:
    """The frames as the file has them, and the truth beside it; ends with a sentence if one is no such file."""
    try:
        truth = truths.from_npz(path.with_suffix(".npz"))
        seen = video.probe(str(path))
        frames = np.arange(seen.num_frames)
        clip = AnnotatedClip(id=path.stem, rgb=video.read(seen, frames), fps=seen.fps, source=str(path), frames=frames)
    except ValueError as refusal:
        sys.exit(str(refusal))
    if len(frames) != len(truth.frames):
        sys.exit(f"{path}: has {len(frames)} frames, its truth {len(truth.frames)}")
    return clip, truth


def measure(clip: AnnotatedClip, truth: Truth, seconds: float) -> dict[str, Any]:
    """Hold the labeled clip against the truth."""
    assert clip.cameras is not None
    assert clip.motion is not None
    still = clip.motion.scene_flow[~clip.motion.dynamic[:-1]]
    assert not still.any(), f"{clip.id}: scene flow of static pixels is not 0"
    flags = {"degenerate": clip.cameras.degenerate, "cpu_s_per_frame": seconds / len(clip.rgb)}
    return evaluate_clip(clip, truth) | flags | dict(clip.scores)


def colmap(name: str, clip: AnnotatedClip, truth: Truth, moving: np.ndarray | None = None) -> dict[str, Any]:
    """The global mapper of pycolmap on the same pixels, or on those that do not move."""
    from annotate.cameras import second_opinion

    start = time.process_time() + _children()
    try:
        mapped = second_opinion.map_globally(clip.rgb, moving)
    except ValueError as refusal:
        return {f"{name}.refusal": str(refusal)}
    seconds = time.process_time() + _children() - start
    numbers = {
        f"{name}.cpu_s_per_frame": seconds / len(clip.rgb),
        f"{name}.registered": float(mapped.registered.mean()),
    }
    if mapped.registered.all():
        seen = evaluate_clip(clip.with_(cameras=second_opinion.to_cameras(mapped, clip.shape)), truth)
        numbers |= {key.replace("cameras", name): value for key, value in seen.items() if key.startswith("cameras.")}
    return numbers


def _children() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(with_colmap: bool) -> list[str]:
    return [name for name in COLUMNS if with_colmap or not name.startswith(("colmap", "masked"))]


def width(column: str) -> int:
    return max(9, len(column) + 2)


def line(name: str, numbers: dict[str, Any], with_colmap: bool) -> str:
    """One row of the table."""
    cells = []
    for column in shown(with_colmap):
        key, form = COLUMNS[column]
        cells.append(f"{form.format(numbers[key]) if key in numbers else '-':>{width(column)}}")
    return f"{name:20}" + "".join(cells) + f"  {numbers['degenerate'] or ''}"


if __name__ == "__main__":
    main()
