"""One sample's tokens shared by several ranks, for clips whose activations do not fit one device.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509): between attentions a rank holds a part of the tokens with all heads; for
attention it trades them for all tokens with a part of the heads. Text and video are divided each for themselves, since blocks treat
them apart; what does not divide is padded, and the padding is taken off before attention sees it.
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def share_tokens(transformer: nn.Module, group: Any, ranks: int) -> None:
    """Makes the blocks of a CogVideoX transformer work on this rank's part of the tokens; what stands around them sees all.

    In place. Every rank of the group must be given the same samples. Raises ValueError if heads do not divide among ranks.
    """
    heads = transformer.config.num_attention_heads  # pyright: ignore[reportAttributeAccessIssue]
    if heads % ranks:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"parallel.sequence={ranks}: the transformer's {heads} heads do not divide among so many ranks"
        )
    shared = _Shared(group, ranks)
    transformer.set_attn_processor(shared)  # pyright: ignore[reportCallIssue]
    transformer.transformer_blocks[0].register_forward_pre_hook(shared.divide, with_kwargs=True)  # pyright: ignore
    transformer.norm_final.register_forward_pre_hook(shared.unite)  # pyright: ignore


class _Shared:
    """The attention of all blocks, and the numbers of tokens of the pass that is under way."""

    def __init__(self, group: Any, ranks: int) -> None:
        self.group, self.ranks = group, ranks
        self.num_text = self.num_video = 0

    def divide(self, _block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the first block: this rank's tokens of (video, text), which come by place or by name."""
        names = ("hidden_states", "encoder_hidden_states")
        video, text = inputs[:2] if inputs else (named[name] for name in names)
        self.num_video, self.num_text = video.shape[1], text.shape[1]
        mine = [self._mine(video), self._mine(text)]
        return ((*mine, *inputs[2:]), named) if inputs else ((), named | dict(zip(names, mine)))

    def unite(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """After the last block: every video token, on every rank."""
        return (_Gather.apply(inputs[0], self.group, self.ranks)[:, : self.num_video],)  # pyright: ignore

    def _mine(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B s D"]:
        padded = _padded(tokens, self.ranks, axis=1)
        return padded.chunk(self.ranks, dim=1)[dist.get_rank(self.group)]

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B n D"],
        encoder_hidden_states: Float[Tensor, "B l D"],
        attention_mask: None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Float[Tensor, "B n D"], Float[Tensor, "B l D"]]:
        """As diffusers' own processor, with heads for tokens traded before attention and back after it."""
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat((encoder_hidden_states, hidden_states), dim=1)
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (self._whole(part, num_text) for part in (query, key, value))
        if image_rotary_emb is not None:
            for part in (query, key):
                turned: Any = apply_rotary_emb(part[:, :, self.num_text :], image_rotary_emb)
                part[:, :, self.num_text :] = turned
        found = F.scaled_dot_product_attention(query, key, value)
        found = self._part(found).transpose(1, 2).flatten(2)
        found = attn.to_out[1](attn.to_out[0](found))
        return found[:, num_text:], found[:, :num_text]

    def _whole(self, mine: Float[Tensor, "B H s d"], num_text: int) -> Float[Tensor, "B h S d"]:
        """My tokens with all heads -> all tokens, text first, with my heads."""
        by_rank = mine.unflatten(1, (self.ranks, -1)).movedim(1, 0)
        by_rank = _Trade.apply(by_rank, self.group).movedim(0, 2)  # pyright: ignore
        text, video = by_rank[..., :num_text, :].flatten(2, 3), by_rank[..., num_text:, :].flatten(2, 3)
        return torch.cat((text[:, :, : self.num_text], video[:, :, : self.num_video]), dim=2)

    def _part(self, whole: Float[Tensor, "B h S d"]) -> Float[Tensor, "B H s d"]:
        """The way back."""
        parts = whole.split((self.num_text, self.num_video), dim=2)
        by_rank = torch.cat([_padded(part, self.ranks, axis=2).unflatten(2, (self.ranks, -1)) for part in parts], dim=3)
        return _Trade.apply(by_rank.movedim(2, 0), self.group).movedim(0, 1).flatten(1, 2)  # pyright: ignore


class _Trade(torch.autograd.Function):
    """Part r of the first axis goes to rank r; the gradient goes back the same way."""

    @staticmethod
    def forward(context: Any, parts: Tensor, group: Any) -> Tensor:
        context.group = group
        return _traded(parts, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _traded(gradient, context.group), None


class _Gather(torch.autograd.Function):
    """The tokens of all ranks. The gradient of all ranks' equal losses: as often as there are ranks, of which the mean is taken."""

    @staticmethod
    def forward(context: Any, mine: Tensor, group: Any, ranks: int) -> Tensor:
        context.group, context.ranks = group, ranks
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(ranks)]
        dist.all_gather(parts, mine.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mine = gradient.chunk(context.ranks, dim=1)[dist.get_rank(context.group)]
        return mine * context.ranks, None, None


def _traded(parts: Tensor, group: Any) -> Tensor:
    parts = parts.contiguous()
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts, group=group)
    return found


def _padded(tokens: Tensor, ranks: int, axis: int) -> Tensor:
    """Zeros behind, so that the axis divides among ranks."""
    short = -tokens.shape[axis] % ranks
    return F.pad(tokens, [0, 0] * (tokens.ndim - 1 - axis) + [0, short]) if short else tokens
