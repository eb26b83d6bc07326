"""One training step of the transformer, from random latents: seconds, TFLOP/s, utilization, memory, and where the time goes.

Run: python tests/benchmarks/bench_step.py [--ways diffusers eager full compiled] [--profile] [--steps 5]

On a GPU: the shape of CogVideoX-5B, widened, at 49x480x720, and the ceilings that its step is held against, measured in the same
run (a large bfloat16 product; attention by each backend). The ways:

    diffusers  as diffusers' own example trains: bfloat16 autocast over float32 weights, its checkpointing, not compiled
    full       ours, every block computed again in the backward pass
    eager      ours, what is costly kept (parallel.recompute=selective)
    compiled   the same, with parallel.compile=true

Without a GPU: the tiny model, and the cost table, which needs none.
"""

import argparse
import gc
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).parents[2])]

from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from train import diffusion, flops, parallel  # noqa: E402
from train.models import dit  # noqa: E402
from train.recipe import Parallel  # noqa: E402
from train.size import Size  # noqa: E402

SIZES = (Size(), Size(height=384, width=576), Size(frames=25), Size(height=240, width=368))
WAYS = {
    "diffusers": Parallel(),
    "full": Parallel(recompute="full"),
    "eager": Parallel(recompute="selective"),
    "compiled": Parallel(recompute="selective", compile=True),
}
BACKENDS = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
}
PARTS = {
    "attention": ("flash", "fmha", "sdpa", "cudnn_generated", "attention"),
    "products": ("gemm", "nvjet", "cutlass", "sm90_xmma", "cublas"),
    "optimizer": ("adam", "multi_tensor", "foreach"),
    "fused (triton)": ("triton",),
    "copies": ("memcpy", "copy", "memset", "cat"),
}
"""Of a step's kernels, told by their names; the first that fits."""


def ceilings(size: Size) -> float:
    """TFLOP/s of a large product, which is returned, and of attention at this size, by backend."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = 2 * 8192**3 / seconds_of(lambda: a @ b, 20) / 1e12
    print(
        f"bfloat16 product of 8192^3: {found:.0f} TFLOP/s on {torch.cuda.get_device_name()}, torch {torch.__version__}"
    )
    shape = flops.Transformer()
    tokens = shape.tokens(size)
    print(f"attention of {tokens} tokens, 48 heads of 64")
    for name in ("auto", *BACKENDS):
        try:
            with preferring(name):
                forward, backward = attention(tokens)
        except RuntimeError as problem:
            print(f"  {name}: {str(problem).splitlines()[0]}")
            continue
        rates = [work / spent / 1e12 for work, spent in ((1, forward), (2, backward))]
        rates = [rate * shape.attention(tokens) / shape.layers for rate in rates]
        print(
            f"  {name:<20} forward {1e3 * forward:6.2f} ms {rates[0]:4.0f} TFLOP/s, "
            f"backward {1e3 * backward:6.2f} ms {rates[1]:4.0f} TFLOP/s",
            flush=True,
        )
    return found


def preferring(name: str) -> AbstractContextManager[object]:
    """`auto` leaves the choice to torch."""
    return nullcontext() if name == "auto" else sdpa_kernel(BACKENDS[name], set_priority=True)


def attention(tokens: int) -> tuple[float, float]:
    """Seconds forward and backward, of 48 heads of 64."""
    query, key, value = (
        torch.randn(1, tokens, 48, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    out = F.scaled_dot_product_attention(query, key, value)
    given = torch.randn_like(out)
    forward = seconds_of(lambda: F.scaled_dot_product_attention(query, key, value), 5)
    backward = seconds_of(lambda: torch.autograd.grad(out, (query, key, value), given, retain_graph=True), 5)
    return forward, backward


def seconds_of(function: Callable[[], object], times: int) -> float:
    """Mean of so many calls on the device, after two that are not counted."""
    for _ in range(2):
        function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / times


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


def measure(way: str, world: parallel.World, size: Size, *, ceiling: float, asked: argparse.Namespace) -> None:
    """`ceiling`: TFLOP/s to hold the step against; 0 on a CPU, which takes the tiny model."""
    paper = ceiling > 0
    knobs, net = WAYS[way], build(paper, world.device)
    shape = flops.Transformer(
        layers=net.config.num_layers,
        width=net.config.num_attention_heads * net.config.attention_head_dim,
        text_tokens=net.config.max_text_seq_length,
    )
    if way == "diffusers":
        net.enable_gradient_checkpointing()
    else:
        parallel.place(net, knobs, world)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-5, fused=world.device.type == "cuda")
    x0 = torch.randn(1, (size.frames - 1) // 4 + 1, 32, size.height // 8, size.width // 8, device=world.device)
    text = torch.randn(1, net.config.max_text_seq_length, net.config.text_embed_dim, device=world.device)
    loss = ours(knobs, world)

    def step() -> None:
        loss(net, x0, text).backward()
        parallel.clip(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = [timed(step, world) for _ in range(asked.steps + 2)]
    best = sorted(seconds[2:])[len(seconds[2:]) // 2]
    tflops = shape.step(shape.tokens(size)) / best / 1e12
    share = f" ({100 * tflops / ceiling:.1f} % of {ceiling:.0f})" if paper else ""
    print(
        f"  {way:<10} {size!s:<12} {best:8.3f} s/step {tflops:9.3f} TFLOP/s{share}{memory(world)}, first step {seconds[0]:.0f} s",
        flush=True,
    )
    if asked.profile and way == asked.ways[-1]:
        profile(step, world)
    del net, optimizer, step
    gc.collect()
    memory(world)


def timed(step: Callable[[], None], world: parallel.World) -> float:
    wait(world)
    started = time.perf_counter()
    step()
    wait(world)
    return time.perf_counter() - started


def profile(step: Callable[[], None], world: parallel.World) -> None:
    """One step's time on the device, by kind of kernel, and the longest kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    with recorded(activities=kinds) as record:
        spent = timed(step, world)
    kernels: dict[str, float] = defaultdict(float)
    for event in record.key_averages():
        on_device = event.self_device_time_total if world.device.type == "cuda" else event.self_cpu_time_total
        if event.device_type.name == "CUDA" or world.device.type != "cuda":
            kernels[event.key] += on_device / 1e6
    parts: dict[str, float] = defaultdict(float)
    for name, length in kernels.items():
        parts[next((part for part, marks in PARTS.items() if any(m in name.lower() for m in marks)), "other")] += length
    print(f"  one step under the profiler: {spent:.3f} s, of it in kernels {sum(kernels.values()):.3f} s")
    for part, length in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"    {part:<16} {length:7.3f} s")
    for name, length in sorted(kernels.items(), key=lambda item: -item[1])[:14]:
        print(f"      {length:7.3f} s  {name[:100]}")


def memory(world: parallel.World) -> str:
    """Peak since it was last asked for."""
    if world.device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return f", peak {peak:.1f} GiB"


def wait(world: parallel.World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["diffusers", "full", "eager"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="of the last way")
    parser.add_argument("--attention", choices=["auto", *BACKENDS], default="auto")
    parser.add_argument("--size", default="49x480x720")
    asked = parser.parse_args()
    table()
    with parallel.join() as world:
        paper = world.device.type == "cuda"
        frames, height, width = map(int, asked.size.split("x"))
        size = Size(frames=frames, height=height, width=width) if paper else Size(frames=9, height=64, width=96)
        ceiling = ceilings(size) if paper else 0.0
        print(f"{'CogVideoX-5B' if paper else 'tiny model'}, widened, {size}, one sample, AdamW, {world.device}")
        for way in asked.ways:
            with preferring(asked.attention):
                measure(way, world, size, ceiling=ceiling, asked=asked)


if __name__ == "__main__":
    main()
