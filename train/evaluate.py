"""How good generated clips are: VBench's formulas, Fréchet distances, geometry against a second opinion, and three ways to fail.

Networks are the caller's: anything that gives features of frames, flow of pairs, or frames between frames. Nothing is downloaded.
Convention: features are one row a frame; flow is in pixels; lengths are in units of the clip's median depth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from shared import align, camera, metrics, warp
from shared.clip import KEY_STRIDE, AnnotatedClip
from train import latents, outputs, pose
from train.models import LatentKnobs
from train.sample import Batch, Predicted

MIN_KNOWN = 0.5
"""Share of pixels with depth, below which object motion is not known."""

Frames = UInt8[np.ndarray, "T H W 3"]
Features = Float[Tensor, "T D"]


@runtime_checkable
class Backbone(Protocol):
    """Features of every frame: DINO ViT-B/16 for subjects, CLIP ViT-B/32 and DreamSim for backgrounds."""

    def __call__(self, rgb: Frames) -> Features: ...


@runtime_checkable
class Interpolator(Protocol):
    """The frames between the given ones, one fewer than given: AMT-S in VBench."""

    def __call__(self, rgb: Frames) -> Frames: ...


def sampled(num_frames: int, fps: float) -> list[int]:
    """The frames VBench looks at: about eight a second, by the rate in the file's tag."""
    return list(range(0, num_frames, max(1, round(fps / 8))))


def between_sampled(
    steps: Float[np.ndarray, "P H W 2"], flow: Float[np.ndarray, "P H W 2"], fps: float
) -> Float[np.ndarray, "Q H W 2"]:
    """`steps` (flow, or a part of it) summed from each sampled frame to the next along the flow; at 8 fps nothing is summed.

    VBench runs its network on the sampled frames. To follow the flow of all frames needs no network.
    """
    frames = sampled(len(flow) + 1, fps)
    if len(frames) == len(flow) + 1:
        return steps
    parts, all_flow = torch.tensor(steps), torch.tensor(flow)
    sums = []
    for start, end in pairwise(frames):
        way, found = all_flow[start : start + 1], parts[start : start + 1]
        for t in range(start + 1, end):
            at = warp.targets(way)
            way, found = way + warp.sample(all_flow[t : t + 1], at), found + warp.sample(parts[t : t + 1], at)
        sums.append(found)
    return torch.cat(sums).numpy() if sums else steps[:0]


def is_dynamic(flow: Float[np.ndarray, "P H W 2"]) -> bool:
    """VBench's rule for one video, on flow between neighboring sampled frames.

    A pair moves if the mean of its ⌊0.05 HW⌋ longest vectors exceeds 6 · min(H, W) / 256 pixels; of N = P + 1 frames, round(N / 4)
    pairs must move (halves to even). A camera that glides past a still world is dynamic too: see `object_flow`.
    """
    pairs, height, width = flow.shape[:3]
    lengths = torch.from_numpy(np.ascontiguousarray(flow)).norm(dim=-1).flatten(1)
    fastest = lengths.topk(max(1, int(0.05 * height * width)), dim=1).values.mean(1)
    moving = int((fastest > 6 * min(height, width) / 256).sum())
    return pairs > 0 and moving >= round(4 * (pairs + 1) / 16)


def object_flow(clip: AnnotatedClip) -> tuple[Float[np.ndarray, "P H W 2"], Bool[np.ndarray, "P H W"]]:
    """Flow minus what the camera alone would cause, and where depth is known; 0 elsewhere.

    Raises ValueError without depth, cameras and flow.
    """
    if clip.depth is None or clip.cameras is None or clip.flow is None:
        raise ValueError(f"{clip.id}: object motion asks for depth, cameras and flow")
    world_from_cam = torch.tensor(clip.cameras.world_from_cam)
    next_from_this = camera.invert(world_from_cam[1:]) @ world_from_cam[:-1]
    intrinsics = torch.tensor(clip.cameras.intrinsics)
    z = torch.tensor(clip.depth.z[:-1]).double()
    rigid, z_next = camera.rigid_flow(z.clamp_min(1e-6), next_from_this, intrinsics[:-1], intrinsics[1:])
    known = torch.tensor(clip.depth.valid[:-1]) & (z_next > 1e-6)
    moved = torch.where(known[..., None], torch.tensor(clip.flow.forward).double() - rigid, 0)
    return moved.float().numpy(), known.numpy()


def is_object_dynamic(clip: AnnotatedClip) -> bool | None:
    """VBench's rule on `object_flow`. None, which is no 0: depth, cameras or flow are missing, or most pixels have no depth."""
    if clip.depth is None or clip.cameras is None or clip.flow is None:
        return None
    moved, known = object_flow(clip)
    if known.size == 0 or known.mean() < MIN_KNOWN:
        return None
    return is_dynamic(between_sampled(moved, clip.flow.forward, clip.fps))


def consistency(features: Features) -> float:
    """Subject (DINO) or background (CLIP) consistency: mean over frames i >= 1 of (cos(i, i-1)⁺ + cos(i, 0)⁺) / 2."""
    unit = F.normalize(features.double(), dim=-1)
    before, first = (unit[1:] * unit[:-1]).sum(-1), unit[1:] @ unit[0]
    return float((before.clamp_min(0) + first.clamp_min(0)).mean() / 2)


def faithfulness(image: Float[Tensor, "1 D"], features: Features) -> float:
    """Image-to-video subject (DINO) or background (DreamSim): 0.4 max_i cos(x0, i)⁺ + 0.3 mean + 0.3 min of cos(i, i+1)⁺.

    `image` is one row: the features of the picture the video was made from.
    """
    unit = F.normalize(features.double(), dim=-1)
    to_image = (unit @ F.normalize(image.double(), dim=-1)[0]).clamp_min(0)
    steps = (unit[1:] * unit[:-1]).sum(-1).clamp_min(0)
    return float(0.4 * to_image.max() + 0.3 * steps.mean() + 0.3 * steps.min())


def smoothness(rgb: Frames, interpolate: Interpolator) -> float:
    """Motion smoothness: every odd frame against the one interpolated from its even neighbors, (255 - mean |ΔI|) / 255."""
    even = rgb[::2]
    odd = rgb[1::2][: len(even) - 1]
    return _likeness(interpolate(even), odd)


def steadiness(rgb: Frames) -> float:
    """Temporal flicker of a video meant to stand still: (255 - mean |I_t - I_t+1|) / 255."""
    return _likeness(rgb[:-1], rgb[1:])


def frechet(real: Float[Tensor, "N D"], made: Float[Tensor, "M D"]) -> float:
    """Fréchet distance of two sets of features (FID, FVD), covariances with N - 1: few samples bias it upwards, so print N.

    |μ - μ'|² + Tr(Σ + Σ' - 2 (Σ Σ')^½); the trace of the root is the sum of the roots of the eigenvalues of Σ^½ Σ' Σ^½.
    """
    if min(len(real), len(made)) < 2:
        raise ValueError(f"a Fréchet distance of {len(real)} and {len(made)} samples: expected at least two of each")
    means, spreads = zip(*((x.double().mean(0), torch.cov(x.double().T, correction=1)) for x in (real, made)))
    first, second = (spread.reshape(real.shape[1], -1) for spread in spreads)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    crossed = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + first.trace() + second.trace() - 2 * crossed)


def frechet_of(
    network: Callable[[Frames], Float[Tensor, "N D"]], real: Sequence[Frames], made: Sequence[Frames]
) -> float:
    """FID or FVD of two sets of clips, by a network that gives a row a frame or a row a clip."""
    first, second = (torch.cat([network(rgb) for rgb in clips]) for clips in (real, made))
    return frechet(first, second)


def geometry(clip: AnnotatedClip, reference: AnnotatedClip) -> dict[str, float]:
    """A generated clip's depth and cameras against those a camera annotator found in its pixels.

    Depth by the clip's median scale, and by scale and shift; ATE, RTE and RRE after a similarity, over one frame. `length` (in
    median depths) and `rotation_deg` say how much the reference's camera moves: a camera that stands still is easy to follow.
    Raises ValueError where either has no depth that could be compared, saying what its cameras are flagged as.
    """
    if clip.depth is None or clip.cameras is None or reference.depth is None or reference.cameras is None:
        raise ValueError(f"{clip.id}: geometry asks for depth and cameras of the clip and of its reference")
    both = torch.from_numpy(clip.depth.valid & reference.depth.valid)
    if not reference.depth.valid.any() and reference.cameras.degenerate:
        raise ValueError(
            f"{clip.id}: its pixels tell no depth, their cameras are flagged {reference.cameras.degenerate}"
        )
    if not both.any():
        raise ValueError(f"{clip.id}: clip and reference share no pixel with valid depth")
    ours, theirs = torch.tensor(clip.depth.z)[both].double(), torch.tensor(reference.depth.z)[both].double()
    scaled = metrics.depth(ours * align.median_scale(ours, theirs), theirs)
    every = max(1, len(ours) // 100_000)
    scale, shift = align.lad_scale_shift(ours[::every], theirs[::every])
    fitted = metrics.depth(ours * scale + shift, theirs)
    unit = float(theirs.median())
    poses = metrics.cameras(
        torch.tensor(clip.cameras.world_from_cam), torch.tensor(reference.cameras.world_from_cam), scene_depth=unit
    )
    return {
        "log_rmse": scaled["log_rmse"],
        "delta_1.25": scaled["delta_1"],
        "log_rmse_fitted": fitted["log_rmse"],
        "delta_1.25_fitted": fitted["delta_1"],
        "ate": poses["ate"] / unit,
        "rte": poses["rpe_translation"] / unit,
        "rre_deg": poses["rpe_rotation_deg"],
        "length": poses["path"] / unit,
        "rotation_deg": poses["rotation_deg"],
        "near_still": poses["near_still"],
    }


@torch.no_grad()
def round_trip(vae: latents.VideoVAE, batch: Batch, knobs: LatentKnobs) -> dict[str, float]:
    """What the geometry video of one clip (a batch of one) loses on its way through the VAE and back, with its ranges known.

    AbsRel of depth and end-point error of flow in pixels, over pixels with valid depth; `limit` is the same without the VAE: what
    the video's own clipped ranges cost.
    """
    video, ranges = latents.geometry_video(batch, knobs)
    back = latents.decode(vae, latents.encode(vae, video).mean)
    valid, found = batch.depth_valid, {}
    for name, one in (("", back), (" limit", video)):
        depth, flow = latents.depth_and_flow(one, ranges)
        found[f"AbsRel{name}"] = float(((depth - batch.depth).abs() / batch.depth)[valid].mean())
        found[f"EPE{name}"] = float((flow - batch.flow).norm(dim=-1)[valid[:, :-1]].mean())
    return found


def gated(predicted: Predicted) -> Predicted:
    """Scene flow only where the mask says that something moves, as equation 5 has it."""
    return replace(predicted, scene_flow=predicted.scene_flow * (predicted.dynamic_logit > 0)[..., None])


def prediction(predicted: Predicted, batch: Batch) -> dict[str, float]:
    """Errors of what was decoded of one clip (a batch of one) with known truth, in units of the scene.

    Depth as is, and after the usual median scale of each clip; cameras against the first, angles in degrees; scene flow apart where
    things move and where they do not, and over all pixels with a label. What the clip has no label of is left out.
    """
    found: dict[str, float] = {}
    valid = batch.key_valid
    if valid.any():
        ours, true = predicted.depth[valid], batch.key_depth[valid]
        scaled = metrics.depth(ours * (true / ours).median(), true)
        found["depth log-RMSE"] = metrics.depth(ours, true)["log_rmse"]
        found |= {"depth log-RMSE scaled": scaled["log_rmse"], "d1.25 scaled": scaled["delta_1"]}
    if bool(batch.has_cameras):
        world_from_cam, _ = pose.decode(predicted.camera, *batch.key_depth.shape[-2:])
        apart = (camera.invert(world_from_cam) @ batch.world_from_cam)[0, 1:].double()
        if valid.any():
            found["points"] = float((predicted.points - batch.points).norm(dim=-1)[valid].mean())
        found["camera position"] = float(apart[:, :3, 3].norm(dim=-1).mean())
        found["camera angle"] = float(metrics.angle_deg(apart[:, :3, :3]).mean())
    if bool(batch.has_motion):
        found["mask IoU"] = metrics.mask(predicted.dynamic_logit > 0, batch.dynamic)["iou"]
    off, known = (predicted.scene_flow - batch.scene_flow).norm(dim=-1), batch.scene_flow_valid
    parts = {"moving": known & batch.dynamic, "static": known & ~batch.dynamic, "all": known}
    return found | {f"scene flow {name}": float(off[part].mean()) for name, part in parts.items() if part.any()}


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """The three known failures of a clip: each measure, and whether it fires."""

    measures: Mapping[str, float]
    static_collapse: bool
    """Nothing moves: neither the image, nor the camera."""
    geometric_inconsistency: bool
    """Depth, cameras and scene flow do not explain the flow, or depth does not fit itself in the next view."""
    camera_scene_confusion: bool
    """What stands still is said to move: scene flow leaks off the moving pixels."""


def signatures(
    clip: AnnotatedClip,
    *,
    min_length: float = 0.02,
    max_flow_gap_diagonals: float = 0.01,
    max_depth_gap: float = 0.05,
    max_leak: float = 0.2,
) -> Signatures:
    """Looks for the failures in one clip that has depth, cameras, flow, key flow and motion.

    `flow_gap` is the median of |π(P + F3d) - (u + F2d)| over key pairs, in image diagonals; `depth_gap` the median relative gap of
    static depth in the next key view; `leak` see `scene_flow_leak`; `length` the camera's path in median depths.
    """
    if clip.depth is None or clip.cameras is None or clip.flow is None or clip.motion is None:
        raise ValueError(f"{clip.id}: the signatures of failure ask for depth, cameras, flow and motion")
    if not clip.depth.valid.any():
        raise ValueError(f"{clip.id}: has no pixel with valid depth, expected some to measure lengths by")
    flow_gap, depth_gap = _key_gaps(clip)
    unit = float(np.median(clip.depth.z[clip.depth.valid]))
    found = {
        "dynamic": float(is_dynamic(between_sampled(clip.flow.forward, clip.flow.forward, clip.fps))),
        "length": metrics.path_length(torch.tensor(clip.cameras.world_from_cam)) / unit,
        "flow_gap": flow_gap,
        "depth_gap": depth_gap,
        "leak": clip.scores.get("scene_flow_leak", _leak_of(clip, unit)),
    }
    if (moves := is_object_dynamic(clip)) is not None:
        found["object_dynamic"] = float(moves)
    return Signatures(
        measures=found,
        static_collapse=not found["dynamic"] and found["length"] < min_length,
        geometric_inconsistency=flow_gap > max_flow_gap_diagonals or depth_gap > max_depth_gap,
        camera_scene_confusion=found["leak"] > max_leak,
    )


def table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """Measures of several models side by side, in the layout of the paper's tables (Markdown); a dash where one is missing."""
    lines = [f"|method|{'|'.join(columns)}|", "|---" * (len(columns) + 1) + "|"]
    for name, found in rows.items():
        cells = (f"{found[column]:.3f}" if column in found else "-" for column in columns)
        lines.append(f"|{name}|{'|'.join(cells)}|")
    return "\n".join(lines)


def averaged(clips: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every measure over the clips that have it."""
    names = dict.fromkeys(name for clip in clips for name in clip)
    return {name: float(np.mean([clip[name] for clip in clips if name in clip])) for name in names}


def video_quality(
    clip: AnnotatedClip,
    *,
    subject: Backbone | None = None,
    background: Backbone | None = None,
    image_background: Backbone | None = None,
    interpolate: Interpolator | None = None,
) -> dict[str, float]:
    """Table 1's columns for one clip: what the given networks and the clip's own flow allow. Its first frame is the image.

    VBench takes CLIP for background consistency (`background`) and DreamSim for i2v background (`image_background`).
    """
    found: dict[str, float] = {}
    if clip.flow is not None:
        found["d.d."] = float(is_dynamic(between_sampled(clip.flow.forward, clip.flow.forward, clip.fps)))
    if (moves := is_object_dynamic(clip)) is not None:
        found["object d.d."] = float(moves)
    if interpolate is not None:
        found["m.s."] = smoothness(clip.rgb, interpolate)
    if subject is not None:
        features = subject(clip.rgb)
        found["i2v-s"] = faithfulness(features[:1], features[1:])
        found["s.c."] = consistency(features)
    if image_background is not None:
        features = image_background(clip.rgb)
        found["i2v-b"] = faithfulness(features[:1], features[1:])
    if background is not None:
        found["b.c."] = consistency(background(clip.rgb))
    return found


def _likeness(a: Frames, b: Frames) -> float:
    return float((255 - np.abs(a.astype(np.float64) - b.astype(np.float64)).mean()) / 255)


def _leak_of(clip: AnnotatedClip, unit: float) -> float:
    assert clip.motion is not None
    if clip.motion.key_scene_flow is None:
        return 0.0
    keys = torch.tensor(clip.motion.dynamic[::KEY_STRIDE][:-1])
    return outputs.scene_flow_leak(torch.tensor(clip.motion.key_scene_flow), keys, unit)


def _key_gaps(clip: AnnotatedClip) -> tuple[float, float]:
    """How far moved points land from where key flow leads (diagonals), and from the depth there where nothing moves (relative)."""
    assert clip.depth is not None
    assert clip.cameras is not None
    assert clip.motion is not None
    if clip.key_flow is None or clip.motion.key_scene_flow is None:
        raise ValueError(f"{clip.id}: geometric consistency asks for key flow and key scene flow")
    keys = slice(None, None, KEY_STRIDE)
    world_from_cam, lens = (torch.tensor(x[keys]) for x in (clip.cameras.world_from_cam, clip.cameras.intrinsics))
    z, valid = torch.tensor(clip.depth.z[keys]).double(), torch.tensor(clip.depth.valid[keys])
    moved = camera.pointmap(z, world_from_cam, lens)[:-1] + torch.tensor(clip.motion.key_scene_flow)
    p_next = camera.transform(camera.invert(world_from_cam[1:])[:, None, None], moved)
    uv = camera.project(torch.where(p_next[..., 2:] > 1e-6, p_next, 1.0), lens[1:, None, None])
    ends = warp.targets(torch.tensor(clip.key_flow.forward).double())
    height, width = z.shape[1:]
    known = valid[:-1] & (p_next[..., 2] > 1e-6)
    flow_gap = (uv - ends).norm(dim=-1)[known] / float(np.hypot(height, width))
    seen = warp.sample(z[1:, ..., None], uv)[..., 0]
    at_rest: Bool[Tensor, "Q H W"] = (
        known & ~torch.tensor(clip.motion.dynamic[keys])[:-1] & warp.in_bounds(uv, height, width)
    )
    depth_gap = ((seen - p_next[..., 2]).abs() / p_next[..., 2].clamp_min(1e-6))[at_rest]
    return _median(flow_gap), _median(depth_gap)


def _median(values: Tensor) -> float:
    return float(values.median()) if len(values) else float("inf")
