"""One training step of the transformer, from random latents: seconds, TFLOP/s, utilization, memory.

Run: python tests/benchmarks/bench_step.py

On a GPU: the shape of CogVideoX-5B, widened, at 49x480x720; our step for every way of recomputing, and the same step as diffusers'
own example does it (bfloat16 autocast, its own checkpointing). Without one: the tiny model, and the cost table, which needs no GPU.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2])]

from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel  # noqa: E402

from train import diffusion, flops, parallel  # noqa: E402
from train.models import dit  # noqa: E402
from train.recipe import Parallel  # noqa: E402
from train.size import Size  # noqa: E402

MATMUL_TFLOPS = 790.0
"""Of an H200 in a large bfloat16 product: what can be had, where the data sheet says 989."""
SIZES = (Size(), Size(height=384, width=576), Size(frames=25), Size(height=240, width=368))


def table() -> None:
    base = flops.Transformer()
    print("CogVideoX-5B, TFLOP a sample      tokens  forward    train  selective     full  GFLOP/token")
    for size in SIZES:
        tokens = base.tokens(size)
        costs = [
            base.forward(tokens),
            base.step(tokens),
            base.executed(tokens, "selective"),
            base.executed(tokens, "full"),
        ]
        print(
            f"  {size!s:<30} {tokens:8d} {costs[0] / 1e12:8.0f} {costs[1] / 1e12:8.0f} {costs[2] / 1e12:10.0f} "
            f"{costs[3] / 1e12:8.0f} {costs[1] / tokens / 1e9:12.1f}"
        )


def build(paper: bool, device: torch.device) -> CogVideoXTransformer3DModel:
    """Random weights in the shape of the base, widened to 48 channels in and 32 out, straight on the device."""
    small = {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "time_embed_dim": 32,
        "text_embed_dim": 32, "max_text_seq_length": 16, "sample_height": 8, "sample_width": 12, "sample_frames": 9,
    }  # fmt: skip
    full = {
        "num_attention_heads": 48, "attention_head_dim": 64, "num_layers": 42, "time_embed_dim": 512,
        "text_embed_dim": 4096, "max_text_seq_length": 226,
    }  # fmt: skip
    with torch.device(device):
        return CogVideoXTransformer3DModel(
            in_channels=48, out_channels=32, use_rotary_positional_embeddings=True, **(full if paper else small)
        )


def ours(knobs: Parallel, world: parallel.World) -> Callable[[torch.nn.Module, Tensor, Tensor], Tensor]:
    def loss(net: torch.nn.Module, x0: Tensor, text: Tensor) -> Tensor:
        t = torch.full((len(x0),), 500, device=x0.device)
        signal = diffusion.alpha_bar().to(x0.device)[t]
        eps = torch.randn_like(x0)
        noisy, target = diffusion.noised(x0, eps, signal), diffusion.velocity(x0, eps, signal)
        with parallel.precision(knobs, world.device):
            v = dit.predict(net, noisy, torch.zeros_like(x0[:, :, :16]), text, t)
        return (v - target).square().mean()

    return loss


def measure(
    name: str, knobs: Parallel, world: parallel.World, size: Size, *, paper: bool, steps: int, plain: bool
) -> None:
    net = build(paper, world.device)
    shape = flops.Transformer(
        layers=net.config.num_layers,
        width=net.config.num_attention_heads * net.config.attention_head_dim,
        text_tokens=net.config.max_text_seq_length,
    )
    if plain:
        net.enable_gradient_checkpointing()
    else:
        parallel.place(net, knobs, world)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-5, fused=world.device.type == "cuda")
    x0 = torch.randn(1, (size.frames - 1) // 4 + 1, 32, size.height // 8, size.width // 8, device=world.device)
    text = torch.randn(1, net.config.max_text_seq_length, net.config.text_embed_dim, device=world.device)
    loss, seconds = ours(knobs, world), []
    for _ in range(steps + 1):
        wait(world)
        started = time.perf_counter()
        loss(net, x0, text).backward()
        parallel.clip(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(world)
        seconds.append(time.perf_counter() - started)
    best = sorted(seconds[1:])[len(seconds[1:]) // 2]
    tflops = shape.step(shape.tokens(size)) / best / 1e12
    share = f", {100 * tflops / MATMUL_TFLOPS:.1f} % of {MATMUL_TFLOPS:.0f}" if world.device.type == "cuda" else ""
    print(f"  {name:<34} {best:8.3f} s/step {tflops:9.3f} TFLOP/s{share}{memory(world)}", flush=True)
    del net, optimizer
    gc.collect()


def memory(world: parallel.World) -> str:
    if world.device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.empty_cache()
    return f", peak {peak:.1f} GiB"


def wait(world: parallel.World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--steps", type=int, default=5)
    asked.add_argument("--compile", action="store_true")
    knobs = asked.parse_args()
    table()
    with parallel.join() as world:
        paper = world.device.type == "cuda"
        size = Size() if paper else Size(frames=9, height=64, width=96)
        print(f"{'CogVideoX-5B' if paper else 'tiny model'}, widened, {size}, one sample, AdamW, {world.device}")
        for recompute in ("selective", "full") if paper else ("none", "selective", "full"):
            ways = Parallel(recompute=recompute, compile=knobs.compile)
            measure(f"ours, recompute={recompute}", ways, world, size, paper=paper, steps=knobs.steps, plain=False)
        measure("diffusers' own checkpointing", Parallel(), world, size, paper=paper, steps=knobs.steps, plain=True)


if __name__ == "__main__":
    main()
