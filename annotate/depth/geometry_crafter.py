"""GeometryCrafter on a clip: depth that is consistent in time, from MoGe's as a prior. Opt-in: its terms are academic."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from annotate.annotator import Annotate, Annotator, FlowModel
from annotate.weights import Network, device_of, get
from shared.clip import AnnotatedClip, Depth

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from annotate.networks import geometry_crafter, moge

NOTICE = (
    "GeometryCrafter: code and weights for academic, research and education use only (TencentARC/GeometryCrafter, LICENSE; "
    "business licences: wbhu@tencent.com). It needs SVD-xt, Stability AI Community License."
)
ACADEMIC = "GeometryCrafter academic, research and education only"
STABILITY = "Stability AI Community License"
REPO, REVISION = "TencentARC/GeometryCrafter", "2e8eeeecd205018f0937e05f711011505ab61573"
SVD, SVD_REVISION = "stabilityai/stable-video-diffusion-img2vid-xt", "9e43909513c6714f1bc78bcb44d96e733cd242aa"


class GeometryCrafter(Annotator):
    """Depth of a whole clip at once (arXiv 2504.01016), official weights."""

    licence: ClassVar[str] = f"{ACADEMIC}; {STABILITY}; prior: MIT AND Apache-2.0"

    kind: Literal["geometry_crafter"] = "geometry_crafter"
    gpus: float = 1.0
    accept_licence: bool = False
    """Set it when you have read the notice and may use GeometryCrafter for what you do."""
    variant: Literal["determ", "diff"] = "determ"
    """One pass, or five steps from noise; about as accurate."""
    max_side_px: Annotated[int, Field(ge=64)] = 1024
    """Clips are processed with sides rounded up to multiples of 64, reduced if one were longer than this."""
    window: Annotated[int, Field(ge=1)] = 110
    """Frames the UNet sees at once."""
    overlap: Annotated[int, Field(ge=0)] = 25
    decode_chunk: Annotated[int, Field(ge=1)] = 8
    """Frames decoded together; part of the result, as frames see each other within a chunk."""
    frames_at_once: Annotated[int, Field(ge=1)] = 4
    """Of the encoders, which take each frame alone."""
    steps: Annotated[int, Field(ge=2)] = 5
    """Of `diff`."""
    guidance: Annotated[float, Field(ge=1)] = 1.0
    """Of `diff`; 1 is off."""
    seed: int = 42
    """Of `diff`; the noise is made on the CPU, so that it is the same on every device."""
    fixed_focal: bool = True
    """One focal length for the clip; false for zooms."""
    low_memory: bool = False
    """One network in memory at a time, read anew for each clip."""
    precision: Literal["float32", "float16"] = "float16"
    """Of the UNet and of CLIP; the VAEs and the prior are float32."""
    moge_weights: str | None = None
    """The prior's; see `MoGe`."""

    @model_validator(mode="after")
    def _windows_end(self) -> "GeometryCrafter":
        if self.overlap >= self.window:
            raise ValueError(
                f"windows of {self.window} frames overlap by {self.overlap}, expected less than their length"
            )
        return self

    def networks(self) -> tuple[Network, ...]:
        """The five files it needs."""
        from annotate.depth.moge import network

        return (
            _network(f"GeometryCrafter UNet {self.variant}", f"unet_{self.variant}", 3_050_000_000, self._unet),
            _network("GeometryCrafter point-map VAE", "point_map_vae", 393_000_000, _pointmap_vae),
            _svd_network("SVD-xt VAE", "vae/diffusion_pytorch_model.fp16.safetensors", 195_500_000, _svd_encoder),
            _svd_network("SVD-xt CLIP ViT-H", "image_encoder/model.fp16.safetensors", 1_264_200_000, _clip),
            network(self.moge_weights),
        )

    def check(self) -> None:
        if not self.accept_licence:
            raise ValueError(f"{NOTICE} Set depth.accept_licence=true if that suits you.")

    def load(self) -> Annotate:
        """Raises ValueError if the licence is not accepted, or weights cannot be had."""
        self.check()
        for network in self.networks():
            get(network)
        return Loaded(self)

    def _unet(self):
        from annotate.networks.svd_unet import SVDUNet

        return SVDUNet(8 if self.variant == "determ" else 12)


class Loaded:
    """Fills depth; the focal length it saw becomes the score `depth_focal_px`."""

    def __init__(self, knobs: GeometryCrafter, networks: "geometry_crafter.Networks | None" = None) -> None:
        self._knobs = knobs
        self._device = device_of(knobs.gpus)
        self._networks = networks or _shelf(knobs, self._device)

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
        """Depth in one unknown unit for the clip."""
        if clip.depth is not None:
            return clip
        import torch

        frames = torch.tensor(clip.rgb, device=self._device).permute(0, 3, 1, 2).float() / 255
        geometry = self._geometry(frames)
        valid = geometry.valid.cpu().numpy()
        z = np.where(valid, geometry.z.float().cpu().numpy(), 0).astype(np.float32)
        scores = {"depth_valid": float(valid.mean())}
        if (focal := geometry.focal_x.median().item()) > 0:  # 0 where nothing is valid
            scores["depth_focal_px"] = (clip.shape[2] - 1) / (2 * focal)
        depth = Depth(z=z, valid=valid, metric=False, source=f"geometry-crafter-{self._knobs.variant}")
        return clip.with_(depth=depth, scores=scores)

    def _geometry(self, frames: "Tensor") -> "geometry_crafter.Geometry":
        from annotate.networks import geometry_crafter as gc

        knobs, size = self._knobs, (frames.shape[2], frames.shape[3])
        encoded = gc.encode(self._networks, frames, processing_size(*size, knobs.max_side_px), knobs.frames_at_once)
        if knobs.variant == "determ":
            latents = gc.determ(self._networks, encoded, knobs.window, knobs.overlap)
        else:
            noise = _noise(knobs, encoded.video).to(frames.device)
            latents = gc.diff(
                self._networks, encoded, knobs.window, knobs.overlap, noise, steps=knobs.steps, guidance=knobs.guidance
            )
        return gc.decode(self._networks, latents, size, knobs.decode_chunk, fixed_focal=knobs.fixed_focal)


def processing_size(height: int, width: int, max_side_px: int) -> tuple[int, int]:
    """Sides in multiples of 64, not below the clip's unless they exceed `max_side_px`."""
    factor = min(1.0, max_side_px / max(height, width))
    rows, columns = (max(1, math.ceil(side * factor / 64)) * 64 for side in (height, width))
    return rows, columns


def _noise(knobs: GeometryCrafter, like: "Tensor") -> "Tensor":
    import torch

    shape = (min(knobs.window, len(like)), *like.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(knobs.seed))


def _shelf(knobs: GeometryCrafter, device: str) -> "geometry_crafter.Networks":
    """The networks, each loaded from its file when its turn comes."""
    import torch

    from annotate.networks.geometry_crafter import Networks

    unet, pointmap_vae, svd_vae, clip, moge = knobs.networks()
    dtype = getattr(torch, knobs.precision)
    loaders = {
        "prior": lambda: MoGePrior(_loaded(moge, device, torch.float32)),
        "clip": lambda: _loaded(clip, device, dtype),
        "svd_encoder": lambda: _loaded(svd_vae, device, torch.float32),
        "pointmap_vae": lambda: _loaded(pointmap_vae, device, torch.float32),
        "unet": lambda: _loaded(unet, device, dtype),
    }
    return Networks(loaders, knobs.low_memory)


def _loaded(network: Network, device: str, dtype: "torch.dtype") -> Any:
    """Built without memory, filled from the file, then moved: the largest network never exists twice."""
    import torch

    with torch.device("meta"):
        net: Any = network.build()
    return net.to(dtype).load_checkpoint(get(network)).to(device)


class MoGePrior:
    """Points of every frame on its own; a frame in which nothing is valid borrows the nearest one's focal length and shift."""

    def __init__(self, net: "moge.MoGe") -> None:
        self._net = net

    def __call__(self, frames: "Tensor") -> "geometry_crafter.Points":
        import torch

        seen = [self._net.infer(frame[None]) for frame in frames]
        focals, shifts = (torch.cat([getattr(one, name) for one in seen]) for name in ("focal", "shift"))
        for t, source in _borrowed(focals.isfinite().tolist()).items():
            seen[t] = self._under(frames[t : t + 1], focals[source : source + 1], shifts[source : source + 1])
        return torch.cat([one.points for one in seen]), torch.cat([one.valid for one in seen])

    def _under(self, frame: "Tensor", focal: "Tensor", shift: "Tensor") -> "moge.Inferred":
        import torch

        from annotate.networks.moge import render

        with torch.inference_mode():
            return render(*self._net.maps(frame, 9), focal, shift, (frame.shape[2], frame.shape[3]))


def _borrowed(known: list[bool]) -> dict[int, int]:
    """For each unknown frame the nearest known one; none if no frame is known."""
    sources = [t for t, is_known in enumerate(known) if is_known]
    if not sources:
        return {}
    return {t: min(sources, key=lambda s: abs(s - t)) for t, is_known in enumerate(known) if not is_known}


def _network(name: str, folder: str, num_bytes: int, build) -> Network:
    return Network(
        name=name,
        source=REPO,
        file=f"{folder}/diffusion_pytorch_model.safetensors",
        revision=REVISION,
        num_bytes=num_bytes,
        licence=ACADEMIC,
        notice=NOTICE,
        build=build,
    )


def _svd_network(name: str, file: str, num_bytes: int, build) -> Network:
    return Network(
        name=name,
        source=SVD,
        file=file,
        revision=SVD_REVISION,
        num_bytes=num_bytes,
        licence=STABILITY,
        notice=NOTICE,
        build=build,
    )


def _pointmap_vae():
    from annotate.networks.pointmap_vae import PointmapVAE

    return PointmapVAE()


def _svd_encoder():
    from annotate.networks.pointmap_vae import SVDEncoder

    return SVDEncoder()


def _clip():
    from annotate.networks.clip_vision import ClipVision

    return ClipVision()
