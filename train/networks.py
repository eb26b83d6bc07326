"""Networks of the caller's for `evaluate model`, from files on this machine. Nothing is downloaded.

A backbone is a folder of transformers (DINO, CLIP; safetensors) or a TorchScript file; networks of Fréchet distances and
interpolators are TorchScript files. A TorchScript file holds code, which runs: use none that you do not trust.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from train.evaluate import Backbone, Features, Frames, Interpolator

SIDE = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of what a TorchScript backbone is shown; a transformers folder brings its own."""
AT_ONCE = 16


def backbone(path: str) -> Backbone:
    """Features of frames: CLIP's image embedding, else the first token of the last layer; or what a TorchScript file returns.

    Frames are resized to 224 x 224 (bicubic, antialiased) and normalized. Raises ValueError for a path that is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        network, mean, std, side = _transformer(folder)
    else:
        network, (mean, std), side = _script(path), IMAGENET, SIDE

    @torch.no_grad()
    def _features(rgb: Frames) -> Features:
        pixels = F.interpolate(_pixels(rgb) / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
        return torch.cat([network(part).flatten(1).float() for part in pixels.split(AT_ONCE)])

    return _features


def interpolator(path: str) -> Interpolator:
    """A TorchScript file that makes the frame between two: (N 3 H W, N 3 H W) in 0..1 to the same."""
    network = _script(path)

    @torch.no_grad()
    def _between(rgb: Frames) -> UInt8[np.ndarray, "N H W 3"]:
        frames = _pixels(rgb) / 255
        made = [network(one, after) for one, after in zip(frames[:-1].split(1), frames[1:].split(1))]
        return (torch.cat(made).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return _between


def frame_features(path: str) -> Callable[[Frames], Features]:
    """FID: a TorchScript Inception that takes N 3 H W of 0..255 (uint8) and resizes by itself, as the published file does."""
    network = _script(path)
    options = _options(network)

    @torch.no_grad()
    def _features(rgb: Frames) -> Features:
        frames = torch.tensor(rgb).permute(0, 3, 1, 2)
        return torch.cat([network(part, **options).flatten(1).double() for part in frames.split(AT_ONCE)])

    return _features


def video_features(path: str) -> Callable[[Frames], Float[Tensor, "1 D"]]:
    """FVD: a TorchScript I3D that takes 1 3 T 224 224 in -1..1 (bilinear, corners not aligned); one row a video."""
    network = _script(path)
    options = _options(network)

    @torch.no_grad()
    def _features(rgb: Frames) -> Float[Tensor, "1 D"]:
        frames = F.interpolate(_pixels(rgb) / 127.5 - 1, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return network(frames.transpose(0, 1)[None], **options).flatten(1).double()

    return _features


def weight_hash(path: str) -> str:
    """Of the file, or of a folder's files: which weights a number was made with."""
    digest = hashlib.sha256()
    files = sorted(file for file in Path(path).rglob("*") if file.is_file()) if Path(path).is_dir() else [Path(path)]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _pixels(rgb: UInt8[np.ndarray, "T H W 3"]) -> Float[Tensor, "T 3 H W"]:
    return torch.tensor(rgb).permute(0, 3, 1, 2).float()


def _script(path: str) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, expected TorchScript or a folder of transformers with its config.json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the published files have this format, whatever follows it
            return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]})") from None


def _options(network: Any) -> dict[str, bool]:
    """The published Fréchet networks take switches: features instead of classes, and no resizing beyond ours."""
    known = {"return_features": True, "rescale": False, "resize": False}
    names = {argument.name for argument in network.forward.schema.arguments}
    return {name: value for name, value in known.items() if name in names}


def _transformer(folder: Path) -> tuple[Callable[[Tensor], Tensor], Sequence[float], Sequence[float], int]:
    from transformers import AutoModel

    try:
        network: Any = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: not a model of transformers ({str(error).splitlines()[0]})") from None
    settings = folder / "preprocessor_config.json"
    given = json.loads(settings.read_text()) if settings.is_file() else {}
    vision = getattr(network.config, "vision_config", network.config)
    side = int(getattr(vision, "image_size", SIDE))
    mean, std = (
        tuple(map(float, given.get(name, usual))) for name, usual in zip(("image_mean", "image_std"), IMAGENET)
    )
    if not hasattr(network, "get_image_features"):
        return lambda pixels: network(pixel_values=pixels).last_hidden_state[:, 0], mean, std, side

    def _embedded(pixels: Tensor) -> Tensor:
        found = network.get_image_features(pixel_values=pixels)
        return found if isinstance(found, Tensor) else found.pooler_output

    return _embedded, mean, std, side
