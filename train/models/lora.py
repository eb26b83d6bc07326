"""Low-rank adapters on the transformer's attention: y = W x + B A x, A small and random, B zero at the start (the function of the
base is unchanged). The widened first and last layers train whole."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.models.dit import Transformer

ADAPTED = ("to_q", "to_k", "to_v", "to_out")


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.down = nn.Linear(base.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, base.out_features, bias=False, **like)
        nn.init.normal_(self.down.weight, std=rank**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D2"]:
        return self.base(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        plain = copy.deepcopy(self.base)
        with torch.no_grad():
            plain.weight += self.up.weight @ self.down.weight
        return plain


def add(transformer: Transformer, rank: int) -> Transformer:
    """Puts adapters into every attention layer, in place."""
    for parent, name, layer in _linears(transformer, nn.Linear):
        _put(parent, name, LoraLinear(layer, rank))
    return transformer


def merged(transformer: Transformer) -> Transformer:
    """A plain transformer that does the same; the transformer itself if it has no adapters."""
    if not _linears(transformer, LoraLinear):
        return transformer
    plain = copy.deepcopy(transformer)
    for parent, name, layer in _linears(plain, LoraLinear):
        _put(parent, name, layer.merged())
    return plain


def trainable(transformer: Transformer) -> nn.Module:
    """What training moves: the adapters and the widened layers, or the whole transformer if it has no adapters."""
    adapters = [layer for _, _, layer in _linears(transformer, LoraLinear)]
    if not adapters:
        return transformer
    parts = [part for layer in adapters for part in (layer.down, layer.up)]
    return nn.ModuleList([*parts, transformer.patch_embed.proj, transformer.proj_out])


def _linears(transformer: Transformer, kind: type[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Parent, name and layer of every adapted place that holds a layer of this kind."""
    found = []
    for attention in (block.attn1 for block in transformer.transformer_blocks):
        for name in ADAPTED:
            parent, key = (attention.to_out, "0") if name == "to_out" else (attention, name)
            layer = parent.get_submodule(key)
            if isinstance(layer, kind):
                found.append((parent, key, layer))
    return found


def _put(parent: nn.Module, name: str, layer: nn.Module) -> None:
    if isinstance(parent, nn.ModuleList):
        parent[int(name)] = layer
    else:
        setattr(parent, name, layer)
