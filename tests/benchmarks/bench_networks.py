"""Frames a second and memory of the networks that label video: `python tests/benchmarks/bench_networks.py --device cuda`.

Weights are random (MoGe's by formula, so that some pixels are valid), so only speed and memory mean anything. A clip of smooth
noise, all of an annotator's own work included: copies, resizing, fitting. The first call is not counted.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from annotate.annotator import PairFlow
from annotate.depth import geometry_crafter, moge
from annotate.flow import sea_raft
from annotate.flow_slots import fill_flow
from annotate.networks.clip_vision import ClipVision
from annotate.networks.geometry_crafter import Networks
from annotate.networks.moge import MoGe
from annotate.networks.pointmap_vae import PointmapVAE, SVDEncoder
from annotate.networks.sea_raft import SeaRAFT
from annotate.networks.svd_unet import SVDUNet
from shared.clip import AnnotatedClip
from tests import filling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, help="49, on a CPU 5")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="480 720, on a CPU 64 96")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names")
    asked = parser.parse_args()
    asked.frames = asked.frames or (5 if asked.device == "cpu" else 49)
    asked.size = asked.size or ((64, 96) if asked.device == "cpu" else (480, 720))
    torch.manual_seed(0)
    clip = smooth(asked.frames, *asked.size)
    print(f"{asked.frames} frames of {asked.size[0]}x{asked.size[1]} on {name_of(asked.device)}")
    for name, build in ways(asked.device):
        if not asked.only or any(part in name for part in asked.only):
            measure(name, build, clip, asked.device)


def ways(device: str) -> Iterator[tuple[str, Callable[[], Callable[[AnnotatedClip], object]]]]:
    gpus = 0.0 if device == "cpu" else 1.0
    for variant in ("S", "M"):
        for precision, at_once in (("float32", 4), ("bfloat16", 4), ("bfloat16", 16)):
            knobs = sea_raft.SeaRaft(variant=variant, precision=precision, pairs_at_once=at_once, gpus=gpus)
            yield f"sea_raft {variant} {precision}, {at_once} pairs at once", lambda knobs=knobs: flow_of(knobs, device)
    for precision, at_once in (("float32", 1), ("bfloat16", 1), ("bfloat16", 8)):
        knobs = moge.MoGe(precision=precision, frames_at_once=at_once, gpus=gpus)
        yield f"moge {precision}, {at_once} frames at once", lambda knobs=knobs: moge_of(knobs, device)
    knobs = geometry_crafter.GeometryCrafter(
        accept_licence=True, gpus=gpus, precision="float32" if device == "cpu" else "float16"
    )
    yield f"geometry_crafter determ {knobs.precision}", lambda: crafter_of(knobs, device)


def flow_of(knobs: sea_raft.SeaRaft, device: str) -> Callable[[AnnotatedClip], object]:
    net = SeaRAFT(knobs.variant).load_checkpoint(filling.state(SeaRAFT(knobs.variant)))
    model = sea_raft.Loaded(knobs, net.to(device))
    return lambda clip: fill_flow(clip, model)


class Still:
    """No flow, for nothing: MoGe asks for it to bring its frames to one unit."""

    source = "still"

    def __call__(self, rgb: np.ndarray, pairs: np.ndarray) -> PairFlow:
        return PairFlow(flow=np.zeros((len(pairs), *rgb.shape[1:3], 2), np.float32))


def moge_of(knobs: moge.MoGe, device: str) -> Callable[[AnnotatedClip], object]:
    model = moge.Loaded(knobs, prior(device))
    return lambda clip: model(clip, Still())


def prior(device: str) -> MoGe:
    return MoGe().load_checkpoint(filling.state(MoGe())).to(device)


def crafter_of(knobs: geometry_crafter.GeometryCrafter, device: str) -> Callable[[AnnotatedClip], object]:
    dtype = getattr(torch, knobs.precision)

    def made(kind: Callable[[], torch.nn.Module], kept: torch.dtype) -> torch.nn.Module:
        with torch.device(device):
            return kind().to(kept).eval().requires_grad_(False)

    networks = Networks(
        {
            "prior": lambda: geometry_crafter.MoGePrior(prior(device)),
            "clip": lambda: made(ClipVision, dtype),
            "svd_encoder": lambda: made(SVDEncoder, torch.float32),
            "pointmap_vae": lambda: made(PointmapVAE, torch.float32),
            "unet": lambda: made(lambda: SVDUNet(8), dtype),
        },
        low_memory=False,
    )
    model = geometry_crafter.Loaded(knobs, networks)
    return lambda clip: model(clip, None)


def measure(
    name: str, build: Callable[[], Callable[[AnnotatedClip], object]], clip: AnnotatedClip, device: str
) -> None:
    run = build()
    run(clip)
    wait(device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run(clip)
    wait(device)
    spent = time.perf_counter() - started
    peak = "" if device == "cpu" else f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    print(f"  {name:<40} {spent:7.2f} s a clip, {len(clip.rgb) / spent:7.1f} frames/s{peak}", flush=True)
    del run
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def name_of(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name()


def smooth(frames: int, height: int, width: int) -> AnnotatedClip:
    """A texture that moves by two pixels a frame."""
    coarse = torch.rand(1, 3, height // 16 + 2, (width + 2 * frames) // 16 + 2)
    texture = F.interpolate(coarse, size=(height, width + 2 * frames), mode="bicubic").clamp(0, 1)[0] * 255
    rgb = np.stack([texture[..., 2 * t : 2 * t + width].permute(1, 2, 0).byte().numpy() for t in range(frames)])
    return AnnotatedClip(id="smooth", rgb=np.ascontiguousarray(rgb), fps=8.0, source="none", frames=np.arange(frames))


if __name__ == "__main__":
    main()
