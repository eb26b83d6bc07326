"""The denoiser: CogVideoX's transformer, widened to carry a geometry-motion latent beside the RGB one.

Channels in:  [ noisy rgb 0:16 | image condition 16:32 | noisy geometry 32:48 ]. Channels out: [ rgb 0:16 | geometry 16:32 ].
Only the first convolution and the last linear layer change. New input columns and output rows start at zero, so that at step 0
the RGB half equals the base model bit for bit, and both new parts still receive gradient.
"""

import copy
import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid
from jaxtyping import Float, Int64
from torch import Tensor, nn

if TYPE_CHECKING:
    Transformer = Any  # a type checker knows nothing of diffusers' configurations
else:
    Transformer = CogVideoXTransformer3DModel

CHANNELS = 16
"""Of one latent."""

log = logging.getLogger(__name__)


def widen(
    transformer: Transformer,
    extra_in: int = 16,
    extra_out: int = 16,
    *,
    rows: Literal["zero", "copy"] = "zero",
) -> Transformer:
    """A copy with `extra_in` more input channels (zero) and `extra_out` more output channels (zero, or copies of the RGB rows).

    Exactly three tensors change: `patch_embed.proj.weight`, `proj_out.weight` and `proj_out.bias`. Row c·4 + ph·2 + pw of
    `proj_out` is channel c of the patch's pixel (ph, pw), so new channels are appended rows.

    Raises ValueError for CogVideoX 1.5, whose patches also span time, and for a model that is widened already.
    """
    if transformer.config.patch_size_t is not None:
        raise ValueError(
            "this is a CogVideoX 1.5 transformer (patches of two latent frames, another image scaling), expected 1.0: "
            "use CogVideoX-5b-I2V"
        )
    if transformer.config.out_channels != CHANNELS:
        raise ValueError(
            f"the transformer has {transformer.config.out_channels} output channels, expected {CHANNELS}: is it widened?"
        )
    wide = copy.deepcopy(transformer)
    wide.patch_embed.proj = _widen_input(transformer.patch_embed.proj, extra_in)
    wide.proj_out = _widen_output(transformer.proj_out, extra_out * transformer.config.patch_size**2, rows)
    wide.register_to_config(in_channels=transformer.config.in_channels + extra_in, out_channels=CHANNELS + extra_out)
    return wide


def drop_learned_positions(transformer: Transformer) -> Transformer:
    """Removes, in place, the learned position table, which fits one size only; rotary positions remain.

    The table is nearly zero and results without it are almost the same; with it, `predict` refuses any other size.
    """
    embed = transformer.patch_embed
    if embed.use_learned_positional_embeddings:
        log.warning("event=positions_dropped shape=%s reason=any_size", tuple(embed.pos_embedding.shape))
        embed.use_learned_positional_embeddings = False
        del embed.pos_embedding
        transformer.register_to_config(use_learned_positional_embeddings=False)
    return transformer


def rotary(
    transformer: Transformer, frames: int, height: int, width: int, device: torch.device
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]] | None:
    """Cosines and sines for every video token of `frames` x `height` x `width` latent cells; None for models without."""
    if not transformer.config.use_rotary_positional_embeddings:
        return None
    patch = transformer.config.patch_size
    grid = (height // patch, width // patch)
    base_height, base_width = transformer.config.sample_height // patch, transformer.config.sample_width // patch
    crop = get_resize_crop_region_for_grid(grid, base_width, base_height)
    cosines, sines = get_3d_rotary_pos_embed(
        embed_dim=transformer.config.attention_head_dim,
        crops_coords=crop,
        grid_size=grid,
        temporal_size=frames,
        device=device,
    )
    return cosines, sines


def has_geometry(transformer: Transformer) -> bool:
    """Whether it denoises a geometry-motion latent beside the RGB one."""
    return transformer.config.out_channels > CHANNELS


def predict(
    transformer: Transformer,
    noisy: Float[Tensor, "B F Z h w"],
    image: Float[Tensor, "B F C h w"],
    text: Float[Tensor, "B L D"],
    t: Int64[Tensor, " B"],
) -> Float[Tensor, "B F Z h w"]:
    """The velocity of the noisy latents (RGB, and geometry if the model has it), in float32.

    Raises ValueError for a size that a learned position table, where one was kept, is not made for.
    """
    channels = torch.cat((noisy[:, :, :CHANNELS], image, noisy[:, :, CHANNELS:]), dim=2)
    _, frames, _, height, width = channels.shape
    _check_table(transformer, frames, height, width)
    positions = rotary(transformer, frames, height, width, channels.device)
    return transformer(
        hidden_states=channels.to(transformer.dtype),
        encoder_hidden_states=text.to(transformer.dtype),
        timestep=t,
        image_rotary_emb=positions,
        return_dict=False,
    )[0].float()


def _check_table(transformer: Transformer, frames: int, height: int, width: int) -> None:
    """diffusers would put a table of sines in its place for other frame counts, and say nothing."""
    config = transformer.config
    asked = ((frames - 1) * config.temporal_compression_ratio + 1, height, width)
    table = (config.sample_frames, config.sample_height, config.sample_width)
    if config.use_learned_positional_embeddings and asked != table:
        raise ValueError(
            "the learned position table is for {}x{}x{} (frames, latent cells), the sample has {}x{}x{}: "
            "train at that size, or with learned_positions=drop".format(*table, *asked)
        )


def _widen_input(conv: nn.Conv2d, extra: int) -> nn.Conv2d:
    zeros = conv.weight.new_zeros(conv.out_channels, extra, *conv.kernel_size)
    wide = copy.deepcopy(conv)
    wide.in_channels += extra
    wide.weight = nn.Parameter(torch.cat((conv.weight.detach(), zeros), dim=1))
    return wide


def _widen_output(linear: nn.Linear, extra: int, rows: Literal["zero", "copy"]) -> nn.Linear:
    wide = copy.deepcopy(linear)
    wide.out_features += extra
    for name in ("weight", "bias"):
        old = getattr(linear, name).detach()
        new = old[:extra] if rows == "copy" else old.new_zeros(extra, *old.shape[1:])
        if len(new) != extra:
            raise ValueError(f"{extra} rows were asked for as copies, the base has {len(old)}")
        setattr(wide, name, nn.Parameter(torch.cat((old, new))))
    return wide
