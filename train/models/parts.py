"""The parts of a WorldReel model, how they are made, and how they rest on disk (the diffusers folder layout)."""

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared import knobs as knobs_of
from train import diffusion, latents
from train.latent_cache import LatentWriter
from train.models import DecoderKnobs, ModelKnobs, dit, lora, pooling
from train.models.dpt import TemporalDPT
from train.sample import Batch

log = logging.getLogger(__name__)

PARTS = ("vae", "text_encoder", "transformer", "decoder")

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "time_embed_dim": 32,
    "sample_height": 8,
    "sample_width": 12,
    "sample_frames": 9,
}
SMALL: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_layers": 4,
    "time_embed_dim": 128,
    "sample_height": 12,
    "sample_width": 16,
    "sample_frames": 17,
}
MEDIUM: dict[str, Any] = {
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "num_layers": 10,
    "time_embed_dim": 256,
    "sample_height": 12,
    "sample_width": 18,
    "sample_frames": 17,
}
FREE: dict[str, dict[str, Any]] = {"tiny": TINY, "small": SMALL, "medium": MEDIUM}
"""Bases that need no file: the real classes with few weights, random but for the VAE's (see `pooling`)."""

FREE_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
}
SCALING = 0.7
"""Of the latents of every 5B base."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """Everything a stage may touch. VAE and text encoder are frozen."""

    knobs: ModelKnobs
    vae: latents.VideoVAE
    text: latents.TextEncoder
    dit: dit.Transformer
    dpt: TemporalDPT
    alpha_bar: Float64[Tensor, " steps"]
    cache: LatentWriter | None = None
    """Keeps the latents that had to be made; None: nothing is kept."""

    @property
    def device(self) -> torch.device:
        return self.dit.device

    def latents(self, batch: Batch) -> latents.Latents:
        """Of the batch's two videos; encoded only where the batch does not bring them."""
        encoded = batch.encoded
        if encoded is None:
            encoded = latents.encode_batch(self.vae, batch, self.knobs.latent, alone=self.cache is not None)
            if self.cache is not None:
                self.cache.put(batch, encoded)
        return latents.scaled(self.vae, encoded)

    def cached(self, cache: LatentWriter | None) -> "Models":
        """The same models, what they encode kept."""
        return replace(self, cache=cache)

    def to(self, device: torch.device | str) -> "Models":
        """Moves every part, in place."""
        for module in (self.vae, self.dit, self.dpt):
            module.to(device)
        if isinstance(self.text, latents.T5):
            self.text.encoder.to(device)
        return self

    def save(self, folder: str | Path, only: Collection[str] = PARTS) -> None:
        """Writes vae, text_encoder, transformer and decoder, each in its own folder, as diffusers lays them out.

        Adapters are merged into the transformer's weights, so that others need nothing of ours to load it. `only` leaves out
        frozen parts that rest elsewhere.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.yaml").write_text(knobs_of.dump(self.knobs))
        _save_scheduler(_snr_shift(self.dit), folder / "scheduler")
        if "vae" in only:
            self.vae.save_pretrained(folder / "vae")
        if "text_encoder" in only and isinstance(self.text, latents.T5):
            self.text.encoder.save_pretrained(folder / "text_encoder")
            self.text.tokenizer.save_pretrained(folder / "tokenizer")
        if "transformer" in only:
            lora.merged(self.dit).save_pretrained(folder / "transformer")
        if "decoder" in only:
            _save_decoder(self.dpt, folder / "decoder")


def build(knobs: ModelKnobs) -> Models:
    """The model at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(knobs.seed)
        vae, transformer = _base(knobs)
        text = _text(knobs, Path(knobs.base))
        if knobs.learned_positions == "drop":
            dit.drop_learned_positions(transformer)
        extra_image = 2 * dit.CHANNELS - transformer.config.in_channels  # text-to-video bases take no image
        extra = dit.CHANNELS if knobs.geometry_latent else 0
        if extra_image + extra:
            transformer = dit.widen(transformer, extra_image + extra, extra, rows=knobs.geometry_rows)
        if knobs.lora_rank:
            transformer = lora.add(transformer, knobs.lora_rank)
        dpt = TemporalDPT(knobs.decoder_knobs)
    return _models(knobs, vae, text, transformer, dpt)


def text_encoder(knobs: ModelKnobs) -> latents.TextEncoder:
    """What reads the captions of a model, alone; the same weights as in `build`.

    Raises ValueError if the knobs say that captions are cached already.
    """
    if knobs.text.kind == "cached":
        raise ValueError("model.text.kind is cached: caching asks for t5 or bytes")
    return build(knobs).text if knobs.base in FREE else _text(knobs, Path(knobs.base))


def load(folder: Path) -> Models:
    """The model of a folder that `Models.save` wrote."""
    if not (folder / "model.yaml").exists():
        raise ValueError(f"{folder} holds no model: model.yaml is missing")
    knobs = knobs_of.load(ModelKnobs, folder / "model.yaml")
    missing = [name for name in ("vae", "transformer", "decoder") if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}: it was saved without, or not whole")
    vae = _pretrained(AutoencoderKLCogVideoX, folder, "vae", torch.float32)
    transformer = _pretrained(CogVideoXTransformer3DModel, folder, "transformer", getattr(torch, knobs.dtype))
    if knobs.lora_rank:
        transformer = lora.add(transformer, knobs.lora_rank)
    dpt = _load_decoder(folder / "decoder")
    return _models(knobs, vae, _text(knobs, folder), transformer, dpt)


def _models(knobs: ModelKnobs, vae: Any, text: Any, transformer: Any, dpt: TemporalDPT) -> Models:
    _check_base(vae, text, transformer)
    dtype = getattr(torch, knobs.dtype)
    if transformer.dtype != dtype:
        transformer = transformer.to(dtype)
    return Models(
        knobs=knobs,
        vae=vae.eval().requires_grad_(False),
        text=text,
        dit=transformer,
        dpt=dpt.to(dtype),
        alpha_bar=diffusion.alpha_bar(snr_shift_scale=_snr_shift(transformer)),
    )


def _check_base(vae: Any, text: latents.TextEncoder, transformer: Any) -> None:
    if vae.config.latent_channels != dit.CHANNELS or getattr(vae.config, "invert_scale_latents", False):
        raise ValueError("the VAE is not that of CogVideoX 1.0: 16 latent channels, latents multiplied by their scale")
    if text.width != transformer.config.text_embed_dim:
        raise ValueError(
            f"text embeddings are {text.width} wide, the transformer expects {transformer.config.text_embed_dim}"
        )


def _base(knobs: ModelKnobs) -> tuple[latents.VideoVAE, dit.Transformer]:
    """VAE and transformer of the base, unwidened."""
    if knobs.base not in FREE:
        vae = _pretrained(AutoencoderKLCogVideoX, knobs.base, "vae", torch.float32)
        return vae, _pretrained(CogVideoXTransformer3DModel, knobs.base, "transformer", getattr(torch, knobs.dtype))
    vae = pooling.start(AutoencoderKLCogVideoX(scaling_factor=SCALING, **FREE_VAE))
    transformer = CogVideoXTransformer3DModel(
        in_channels=2 * dit.CHANNELS,
        out_channels=dit.CHANNELS,
        text_embed_dim=knobs.text.width,
        max_text_seq_length=knobs.text.length,
        use_rotary_positional_embeddings=True,
        **FREE[knobs.base],
    )
    return vae, transformer


def _text(knobs: ModelKnobs, base: Path) -> latents.TextEncoder:
    text = knobs.text
    if text.kind == "cached":
        return latents.CachedText(Path(text.folder), text.width)
    from transformers import AutoTokenizer, ByT5Tokenizer, T5Config, T5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bars would tear the trainer's own

    if (base / "text_encoder").is_dir() or text.kind == "t5":
        encoder = _pretrained(T5EncoderModel, base, "text_encoder", getattr(torch, text.dtype))
        tokenizer = ByT5Tokenizer() if text.kind == "bytes" else _pretrained(AutoTokenizer, base, "tokenizer")
        return latents.T5(tokenizer, encoder, text.length)
    config = T5Config(
        vocab_size=384, d_model=text.width, d_kv=text.width // 2, d_ff=2 * text.width, num_layers=1, num_heads=2
    )
    return latents.T5(ByT5Tokenizer(), T5EncoderModel(config).to(getattr(torch, text.dtype)), text.length)


def _pretrained(kind: Any, base: str | Path, subfolder: str, dtype: torch.dtype | None = None) -> Any:
    """A part from a local folder, or from the hub if `base` is no folder."""
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    if dtype is not None and kind.__module__.startswith("diffusers"):
        options["low_cpu_mem_usage"] = False  # the fast path asks for accelerate
    try:
        with _hub_is_quiet():
            return kind.from_pretrained(str(base), subfolder=subfolder, **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{base}: no {subfolder} in the diffusers layout there ({reason}); name a folder that has it"
        ) from None


@contextmanager
def _hub_is_quiet() -> Iterator[None]:
    """Its client warns of every attempt to reach it; what it has to say in the end is said once, by whoever catches its error."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def _snr_shift(transformer: Any) -> float:
    """1 for the 5B models, 3 for the 2B one, which is told by its missing rotary positions."""
    return 1.0 if transformer.config.use_rotary_positional_embeddings else 3.0


def _save_scheduler(snr_shift_scale: float, folder: Path) -> None:
    CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=snr_shift_scale,
        clip_sample=False,
    ).save_pretrained(folder)


def _save_decoder(dpt: TemporalDPT, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dpt.knobs.model_dump(), indent=2))
    weights = {name: value.contiguous() for name, value in dpt.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")


def _load_decoder(folder: Path) -> TemporalDPT:
    dpt = TemporalDPT(DecoderKnobs.model_validate_json((folder / "config.json").read_text()))
    dpt.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return dpt
