"""MoGe on a clip: each frame's own point map, brought to one focal length and one unit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from pydantic import Field

from annotate.annotator import Annotate, Annotator, FlowModel
from annotate.weights import Network, device_of, get
from shared.clip import AnnotatedClip, Depth

if TYPE_CHECKING:
    from annotate.networks import moge


class MoGe(Annotator):
    """Depth of version 1 (arXiv 2410.19115), one frame at a time. Code MIT; read the weights' hub card for their terms."""

    licence: ClassVar[str] = "MIT AND Apache-2.0 (code); weights: hub card of Ruicheng/moge-vitl"
    accept_licence: ClassVar[bool] = True

    kind: Literal["moge"] = "moge"
    weights: str | None = None
    """A hub id or a file; without, the published ViT-L."""
    level: Annotated[int, Field(ge=0, le=9)] = 9
    """Detail: 0 reads 250,000 pixels of a frame, 9 reads 500,000."""
    frames_at_once: Annotated[int, Field(ge=1)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"

    def networks(self) -> tuple[Network, ...]:
        """The one file it needs."""
        return (network(self.weights),)

    def load(self) -> Annotate:
        """Raises ValueError if the weights cannot be had or are not MoGe's."""
        return Loaded(self, build().load_checkpoint(get(self.networks()[0])))


def network(weights: str | None = None) -> Network:
    """The published weights, or one's own."""
    return Network(
        name="MoGe v1 ViT-L",
        source=weights or "Ruicheng/moge-vitl",
        file="model.pt",
        revision=None if weights else "979e84da9415762c30e6c0cf8dc0962896c793df",
        num_bytes=1_256_700_000,
        licence=MoGe.licence,
        build=build,
    )


def build() -> "moge.MoGe":
    """The empty network."""
    from annotate.networks import moge

    return moge.MoGe()


class Loaded:
    """Fills depth; the focal length it saw becomes the score `depth_focal_px`."""

    def __init__(self, knobs: MoGe, net: "moge.MoGe") -> None:
        self._knobs = knobs
        self._net = net.to(device_of(knobs.gpus))

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
        """Depth in one unknown unit for the clip; frames in which nothing is valid have none."""
        if clip.depth is not None:
            return clip
        from annotate.depth.frame_scales import frame_scales
        from annotate.flow_slots import fill_flow
        from annotate.networks.moge import focal_px

        clip = fill_flow(clip, flow)
        z, valid, focal = self._per_frame(clip)
        scales = frame_scales(z, valid, clip)
        z = np.where(valid, z * scales[:, None, None], 0).astype(np.float32)
        scores = {"depth_valid": float(valid.mean()), "depth_scale_spread": float(np.log(scales).std())}
        if focal is not None:
            scores["depth_focal_px"] = focal_px(focal, *clip.shape[1:])
        return clip.with_(depth=Depth(z=z, valid=valid, metric=False, source="moge-1"), scores=scores)

    def _per_frame(self, clip: AnnotatedClip) -> tuple[np.ndarray, np.ndarray, float | None]:
        """z under one focal length, the median of those each frame alone asks for; frames differ in unit still."""
        from annotate.networks.moge import solve_samples

        at_once = self._knobs.frames_at_once
        seen = [one for at in range(0, len(clip.rgb), at_once) for one in self._fitting(clip.rgb[at : at + at_once])]
        free = np.array([one.focal for one in seen])
        focal = float(np.median(free[free > 0])) if (free > 0).any() else None
        z, valid = np.zeros(clip.shape, np.float32), np.zeros(clip.shape, bool)
        for t, one in enumerate(seen):
            if focal is not None and np.isfinite(one.focal):
                _, shift = solve_samples(one.samples, focal)
                z[t] = one.z + float(shift)
                valid[t] = one.valid & (z[t] > 0)
        return z, valid, focal

    def _fitting(self, rgb: UInt8[np.ndarray, "B H W 3"]) -> list["Seen"]:
        """Half as many frames at once where the device runs out of memory: each frame's maps are its own."""
        import torch

        try:
            return self._seen(rgb)
        except torch.OutOfMemoryError:
            if len(rgb) == 1:
                raise
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors that did not fit
        half = len(rgb) // 2
        return self._fitting(rgb[:half]) + self._fitting(rgb[half:])

    def _seen(self, rgb: UInt8[np.ndarray, "B H W 3"]) -> list["Seen"]:
        import torch
        import torch.nn.functional as F

        from annotate.networks import moge

        device = self._net.image_mean.device
        image = torch.tensor(rgb, device=device).permute(0, 3, 1, 2).float() / 255
        dtype = getattr(torch, self._knobs.precision)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            points, raw_valid = self._net.maps(image, self._knobs.level)
        points, raw_valid = points.float().cpu(), raw_valid.float().cpu()
        samples = moge.samples(points, raw_valid > moge.VALID)
        focals, _ = moge.solve_samples(samples)
        maps = F.interpolate(torch.stack((points[..., 2], raw_valid), 1), size=image.shape[2:], mode="bilinear").numpy()
        return [
            Seen(
                samples=moge.Samples(samples.uv, samples.points[k : k + 1], samples.valid[k : k + 1]),
                z=maps[k, 0],
                valid=maps[k, 1] > moge.VALID,
                focal=float(focals[k]),
            )
            for k in range(len(rgb))
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What is kept of a frame until the clip's focal length is known: z may still be shifted."""

    samples: "moge.Samples"
    z: Float32[np.ndarray, "H W"]
    valid: Bool[np.ndarray, "H W"]
    focal: float
    """Of this frame alone; NaN where nothing is valid."""
