"""Weights by formula: every tensor follows from its key and shape, so two programs can be filled alike without a file.

The formula and its known answers are public facts of the golden arrays (see the README beside them).
"""

import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden"
"""Golden arrays; tests that need them are skipped where the folder is absent."""

TOKENS = ("cls_token", "pos_embed", "mask_token", "register_tokens")


def unit(name: str, count: int) -> np.ndarray:
    """`count` float32 values in [-1, 1): splitmix64 of the name's crc32 and the flat index."""
    with np.errstate(over="ignore"):
        z = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) + np.arange(count, dtype=np.uint64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    top = (z >> np.uint64(40)).astype(np.float32)
    return np.float32(2) * (top * np.float32(2.0**-24)) - np.float32(1)


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Unit noise of this name in this shape."""
    return torch.from_numpy(unit(name, math.prod(shape)).reshape(shape))


def value(name: str, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """The tensor of this key; the first rule that matches its last dotted part or its shape wins."""
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last in ("image_mean", "image_std"):
        constants = (0.485, 0.456, 0.406) if last == "image_mean" else (0.229, 0.224, 0.225)
        return np.array(constants, np.float32).reshape(shape)
    v = unit(name, math.prod(shape)).reshape(shape)
    return _offset_and_span(last, shape, gain, v)


def _offset_and_span(last: str, shape: tuple[int, ...], gain: float, v: np.ndarray) -> np.ndarray:
    f = np.float32
    if last == "running_mean" or last in TOKENS:
        return f(0.1) * v
    if last == "running_var":
        return f(1) + f(0.25) * v
    if last == "mix_factor":
        return v
    if last == "gamma":
        return f(0.5) + f(0.25) * v
    if last == "bias":
        return f(0.05) * v
    if len(shape) == 1:
        return f(1) + f(0.1) * v
    return f(gain * math.sqrt(3 / math.prod(shape[1:]))) * v


def state(net: nn.Module, gain: float = 1.0) -> dict[str, Tensor]:
    """A filled state dict for the network's own keys; shared storage is filled under the name `bn3`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    return {
        key: torch.from_numpy(value(key.replace(".downsample.1.", ".bn3."), shape, gain))
        for key, shape in shapes.items()
    }


def checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 over the sorted keys and the raw bytes of their tensors."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(tensors[key].numpy()).data)
    return digest.hexdigest()
