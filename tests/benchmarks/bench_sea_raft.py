"""SEA-RAFT on a clip against the same network pair by pair: `python tests/benchmarks/bench_sea_raft.py [S M] [--frames 13]`.

Both directions, stride 1, one thread on the CPU (all of a GPU with --device cuda), weights filled by formula. CPU figures are
processor time, the best of the repeats, both ways measured in turn, so that a busy machine disturbs them little.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from annotate.networks.sea_raft import Correlation, SeaRAFT
from annotate.networks.sea_raft_video import VideoFlow
from tests import filling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=["S", "M"])
    parser.add_argument("--frames", type=int, default=13)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 368), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--pairs-at-once", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for variant in arguments.variants:
        measure(variant, arguments)


def measure(variant: str, arguments: argparse.Namespace) -> None:
    net = SeaRAFT(variant).load_checkpoint(filling.state(SeaRAFT(variant), 1.0 if variant == "S" else 0.8))
    net.to(arguments.device)
    dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
    video = VideoFlow(net, pairs_at_once=arguments.pairs_at_once, dtype=dtype, channels_last=True)
    frames = moving(arguments.frames, *arguments.size).to(arguments.device)
    steps = np.arange(arguments.frames - 1)
    pairs = np.concatenate([np.stack((steps, steps + 1), 1), np.stack((steps + 1, steps), 1)])
    apart, together = lambda: pairwise(net, frames, pairs), lambda: at_once(video, frames, pairs)
    runs = [(watched(apart, net), watched(together, video.net)) for _ in range(arguments.repeats)]
    (slow, one_by_one), (fast, all_at_once) = (min(run, key=lambda r: r[0]["all"]) for run in zip(*runs))
    size, differs = "x".join(map(str, arguments.size)), (one_by_one - all_at_once).abs().max().item()
    print(
        f"SEA-RAFT {variant}, {len(frames)} frames of {size}, {len(pairs)} pairs, {arguments.device} {dtype}: pair by pair "
        f"{slow['all']:.1f} s, clip at once {fast['all']:.1f} s, {slow['all'] / fast['all']:.2f} times as fast, "
        f"{len(frames) / fast['all']:.2f} frames/s; largest difference {differs:.1e} px"
    )
    for name, seconds in (("pair by pair", slow), ("clip at once", fast)):
        print(f"  {name}: {', '.join(f'{label} {spent:.1f} s' for label, spent in seconds.items() if label != 'all')}")
    if torch.cuda.is_available():
        print(f"  peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


def pairwise(net: SeaRAFT, frames: Tensor, pairs: np.ndarray) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(frames[i : i + 1], frames[j : j + 1])[0] for i, j in pairs.tolist()])


def at_once(video: VideoFlow, frames: Tensor, pairs: np.ndarray) -> Tensor:
    flow = torch.empty(len(pairs), 2, *frames.shape[2:], device=frames.device)
    for places, pixels, _ in video(frames, pairs):
        flow[places] = pixels
    return flow


def moving(frames: int, height: int, width: int) -> Tensor:
    """A smooth texture that moves by (2, 1) pixels a frame."""
    size = (height + frames, width + 2 * frames)
    coarse = torch.rand(1, 3, size[0] // 6, size[1] // 6, generator=torch.Generator().manual_seed(0))
    texture = (F.interpolate(coarse, size=size, mode="bicubic") * 255).clamp(0, 255)
    return torch.cat([texture[..., t : t + height, 2 * t : 2 * t + width] for t in range(frames)])


def watched(run: Callable[[], Tensor], net: SeaRAFT) -> tuple[dict[str, float], Tensor]:
    """Seconds in all, in encoders, correlation and update (the rest is up-sampling and copies), and what came out."""
    seconds: dict[str, float] = defaultdict(float)
    parts = {net.fnet: "encoder", net.cnet: "encoder", net.update_block: "update", net.flow_head: "update"}
    originals = {name: getattr(Correlation, name) for name in ("__init__", "__call__")}
    for name, original in originals.items():
        setattr(Correlation, name, timed(original, seconds, "correlation"))
    for part, label in parts.items():
        part.forward = timed(part.forward, seconds, label)
    try:
        out = timed(run, seconds, "all")()
    finally:
        for name, original in originals.items():
            setattr(Correlation, name, original)
        for part in parts:
            del part.forward
    return seconds, out


def timed(function: Callable, seconds: dict[str, float], label: str) -> Callable:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def run(*arguments: object, **named: object) -> object:
        _wait()
        start = clock()
        out = function(*arguments, **named)
        _wait()
        seconds[label] += clock() - start
        return out

    return run


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
