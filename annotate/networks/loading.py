"""Weights from files into networks: nothing is unpickled, nothing is missing, nothing is left over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Weights = str | Path | Mapping[str, Any]
"""A file (safetensors, or what `torch.save` wrote) or a state dict, maybe within another dict."""


def read_state_dict(weights: Weights) -> tuple[dict[str, Any], str]:
    """The tensors of a file and the name to use in sentences about them; a state dict is passed through.

    Raises ValueError if the file is absent, or is no safetensors and nothing `torch.load(weights_only=True)` accepts.
    """
    if isinstance(weights, Mapping):
        return dict(weights), "the state dict"
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected weights (.safetensors, .pth or .pt)")
    try:
        return (_safetensors(path) if path.suffix == ".safetensors" else _pickle_free(path)), str(path)
    except Exception as error:  # zip, tar, pickle and safetensors readers each raise their own
        reason = str(error).split("\n")[0][:200]
        raise ValueError(f"{path}: not readable as weights ({reason}), expected tensors without code") from None


def read_shapes(path: Path) -> dict[str, Any]:
    """What `read_state_dict` reads, as tensors without memory: enough to check a file of any size at once."""
    if path.suffix == ".safetensors" and path.is_file():
        return _described_in_header(path)
    state, _ = read_state_dict(path)
    return _without_memory(state)


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copy the tensors into the network, cast to its dtype. Keys and shapes must be equal, both ways.

    A network on the meta device gets its memory here, once, so that the largest one needs no second copy.
    """
    check_keys(net, state, name)
    own = net.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        cast = {key: tensor.to(own[key].dtype) for key, tensor in state.items()}
        net.load_state_dict(cast, assign=True)
    else:
        net.load_state_dict(dict(state))


def check_keys(net: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError naming up to three keys that are missing, left over or of another shape or kind."""
    own = net.state_dict()
    wrong = [
        f"{key} of shape {_shape(state[key])} instead of {_shape(own[key])}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]
    kinds = [
        f"{key} of {state[key].dtype} instead of {own[key].dtype}"
        for key in sorted(own.keys() & state.keys())
        if state[key].is_floating_point() != own[key].is_floating_point()
    ]
    problems = {
        "lacks": sorted(own.keys() - state.keys()),
        "has the surplus": sorted(state.keys() - own.keys()),
        "holds": wrong or kinds,
    }
    said = [f"{verb} {_first_three(keys)}" for verb, keys in problems.items() if keys]
    if said:
        raise ValueError(f"{name}: {' and '.join(said)}, expected exactly the keys of {type(net).__name__}")


def _first_three(keys: list[str]) -> str:
    more = f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "()"


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _pickle_free(path: Path) -> dict[str, Any]:
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict):
        raise ValueError(f"holds a {type(loaded).__name__}")
    return loaded


def _described_in_header(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return {key: _meta(part.get_shape(), part.get_dtype()) for key, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors ({error}), expected weights") from None


def _meta(shape: list[int], dtype: str) -> Tensor:
    kind = torch.float32 if dtype.startswith(("F", "BF")) else torch.int64
    return torch.empty(shape, dtype=kind, device="meta")


def _without_memory(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.to("meta")
    return {key: _without_memory(value) for key, value in state.items()} if isinstance(state, dict) else state
