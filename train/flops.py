"""How much arithmetic a step is, in closed form, attention counted: the 6N rule misses 40 % of it at full size."""

import os
import time
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.models import DecoderKnobs
from train.models.dpt import TemporalDPT
from train.models.parts import Models
from train.size import Size

TEXT_TOKENS = 226

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bfloat16, of the data sheets."""


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """The shape that decides the cost of a diffusion transformer."""

    layers: int = 42
    width: int = 3072
    text_tokens: int = TEXT_TOKENS

    def tokens(self, size: Size) -> int:
        """Text and video tokens of one sample: four frames and 16 x 16 pixels a video token, the first frame alone."""
        latent_frames = (size.frames - 1) // 4 + 1
        return self.text_tokens + latent_frames * (size.height // 16) * (size.width // 16)

    def linear(self, tokens: int) -> float:
        """FLOPs of the projections in one forward pass: 24 S d^2 a layer (4 of attention, 8 of the MLP, 2 FLOPs each)."""
        return self.layers * 24.0 * tokens * self.width**2

    def attention(self, tokens: int) -> float:
        """FLOPs of attention itself: 4 S^2 d a layer (scores and their sum)."""
        return self.layers * 4.0 * tokens**2 * self.width

    def forward(self, tokens: int) -> float:
        return self.linear(tokens) + self.attention(tokens)

    def step(self, tokens: int) -> float:
        """Of one sample's forward and backward pass. What is recomputed is not counted: it is no progress."""
        return 3 * self.forward(tokens)

    def executed(self, tokens: int, recompute: str) -> float:
        """What the device really runs: the step, and what the backward pass computes again."""
        kept = self.linear(tokens) / 3  # the perceptron's second product
        again = {"none": 0.0, "selective": self.linear(tokens) - kept, "full": self.forward(tokens)}
        return self.step(tokens) + again[recompute]


def peak(device: torch.device) -> float | None:
    """TFLOP/s of the data sheet; None for a device that is not in the table, whose utilization stays unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)


def transformer(models: Models) -> Transformer:
    """Of the model that is trained."""
    config = models.dit.config
    width = config.num_attention_heads * config.attention_head_dim
    return Transformer(layers=config.num_layers, width=width, text_tokens=config.max_text_seq_length)


def decoder_forward(knobs: DecoderKnobs, size: Size) -> float:
    """FLOPs of the temporal DPT on one sample, counted operator by operator on tensors without storage."""
    # the fused attention of CPUs is unknown to the counter, its plain form is not
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        latent = torch.empty(1, (size.frames - 1) // 4 + 1, 16, size.height // 8, size.width // 8)
        TemporalDPT(knobs)(latent)
    return float(counter.get_total_flops())


def per_sample(models: Models, trained: set[str], size: Size) -> float:
    """FLOPs of a training step on one sample, of the networks that are trained: the yardstick of utilization."""
    total = 0.0
    if "dit" in trained:
        shape = transformer(models)
        total += shape.step(shape.tokens(size))
    if "dpt" in trained:
        total += 3 * decoder_forward(models.knobs.decoder_knobs, size)
    return total


class Meter:
    """Speed since it was last read, of all ranks together."""

    def __init__(self, models: Models, trained: set[str], device: torch.device, ranks: int) -> None:
        self._models, self._trained, self._device, self._ranks = models, trained, device, ranks
        self._peak, self._costs = peak(device), dict[str, float]()
        self._start()

    def _start(self) -> None:
        self._since, self.waited = time.perf_counter(), 0.0
        self._samples, self._tokens, self._flops = 0, 0, 0.0

    def step(self, size: Size, samples: int) -> None:
        """One optimizer step is done on so many samples of all ranks."""
        self._samples += samples
        self._tokens += samples * transformer(self._models).tokens(size)
        if str(size) not in self._costs:
            self._costs[str(size)] = per_sample(self._models, self._trained, size)
        self._flops += samples * self._costs[str(size)]

    def read(self) -> dict[str, float]:
        """Rates since the last reading. `tflops` and `mfu` are of one device; `data_wait` is a share of the time."""
        seconds = time.perf_counter() - self._since
        tflops = self._flops / seconds / self._ranks / 1e12
        rates = {
            "samples_per_second": self._samples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "tflops": tflops,
            "data_wait": self.waited / seconds,
            "memory_gib": _memory_bytes(self._device) / 2**30,
        }
        self._start()
        return rates | ({"mfu": tflops / self._peak} if self._peak else {})


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # no such file outside Linux
