"""Which pixels of a clip's labels are trusted: gates that narrow what is valid, when labels are read. Shards stay as they are.

`curate` decides the gates and writes them into the selection as numbers; whoever reads clips of that selection applies them.
Pixels are at 720 wide, whatever the size of the labels.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float32
from pydantic import Field

from shared.clip import AnnotatedClip, Flow
from shared.knobs import Knobs

REFERENCE_WIDTH = 720
METADATA = b"worldreel.pixels"
"""Of a selection's Parquet schema: the gates as JSON."""
STEP = 1.15
"""Ratio of neighboring depths that is a step."""

Positive = Annotated[float, Field(gt=0)]


class PixelGates(Knobs):
    """Each narrows what a clip's labels call valid; None trusts them as they are."""

    edge_px: Positive | None = None
    """Depth nearer than this to a depth step (neighbors 15 % apart) is not trusted."""
    residual_px: Positive | None = None
    """Nor is depth of a still pixel that explains its flow to the next frame no better than this, with the cameras."""
    cycle_px: Positive | None = None
    """Scene flow where flow there and back ends farther than this from its start is not trusted."""
    uncertainty: Positive | None = None
    """Nor is it where the flow's network says more than this."""

    @property
    def parts(self) -> frozenset[str]:
        """Members of a clip that the gates read."""
        flow = {"flow.forward", "motion"}
        reads = {
            "edge_px": {"depth"},
            "residual_px": {"depth", "cameras", *flow},
            "cycle_px": {"flow", "key_flow", "motion"},
            "uncertainty": {"flow.uncertainty", "key_flow.uncertainty", *flow},
        }
        return frozenset(part for gate, parts in reads.items() if getattr(self, gate) is not None for part in parts)

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of a selection; nothing where nothing is narrowed."""
        return {METADATA: json.dumps(self.model_dump()).encode()} if self.parts else {}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None) -> "PixelGates":
        """The gates of a selection with this metadata."""
        found = (metadata or {}).get(METADATA)
        return cls() if found is None else cls.model_validate_json(found)


def narrowed(clip: AnnotatedClip, gates: PixelGates) -> AnnotatedClip:
    """The clip with what the gates do not trust marked as not valid. A gate whose labels the clip lacks does nothing."""
    if not gates.parts:
        return clip
    clip = _narrow_depth(clip, gates)
    return _narrow_motion(clip, gates)


def residual_px(
    clip: AnnotatedClip, pairs: slice = slice(None)
) -> tuple[Float32[np.ndarray, "P H W"], Bool[np.ndarray, "P H W"]] | None:
    """(|F - F_rigid| of these pairs of neighboring frames, where depth tells it); None without depth, cameras and flow."""
    import torch  # not at the top: recipes hold these gates, and reading them needs no torch

    from shared import camera

    if clip.depth is None or clip.cameras is None or clip.flow is None:
        return None
    poses, intrinsics = torch.tensor(clip.cameras.world_from_cam), torch.tensor(clip.cameras.intrinsics)
    chosen = range(len(clip.flow.forward))[pairs]
    errors = np.zeros((len(chosen), *clip.shape[1:]), np.float32)
    known = np.zeros(errors.shape, bool)
    for place, t in enumerate(chosen):  # one at a time: whole clips in double precision are gigabytes
        now, then = slice(t, t + 1), slice(t + 1, t + 2)
        z = torch.tensor(clip.depth.z[now]).double()
        to_next = camera.invert(poses[then]) @ poses[now]
        rigid, z_next = camera.rigid_flow(z, to_next, intrinsics[now], intrinsics[then])
        seen = torch.tensor(clip.depth.valid[now]) & (z_next > 0)
        off = (torch.tensor(clip.flow.forward[now]) - rigid).norm(dim=-1) * _to_reference(clip)
        errors[place], known[place] = torch.where(seen, off, 0)[0].float().numpy(), seen[0].numpy()
    return errors, known


def near_step(z: Float32[np.ndarray, "H W"], valid: Bool[np.ndarray, "H W"], reach: int) -> Bool[np.ndarray, "H W"]:
    """True within `reach` pixels of a depth step."""
    import cv2

    around, close = np.ones((3, 3), np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    farthest = cv2.dilate(np.where(valid, z, 0), around)
    nearest = cv2.erode(np.where(valid, z, np.float32(np.inf)), around)
    return cv2.dilate((farthest / STEP > nearest).astype(np.uint8), close) > 0


def _narrow_depth(clip: AnnotatedClip, gates: PixelGates) -> AnnotatedClip:
    if clip.depth is None:
        return clip
    trusted = clip.depth.valid.copy()
    if gates.edge_px is not None:
        reach = max(1, round(gates.edge_px / _to_reference(clip)))
        for now, z, valid in zip(trusted, clip.depth.z, clip.depth.valid):
            now &= ~near_step(z, valid, reach)
    if gates.residual_px is not None and (found := residual_px(clip)) is not None:
        error, known = found
        moves = np.zeros_like(known) if clip.motion is None else clip.motion.dynamic[:-1]
        trusted[:-1] &= ~(known & ~moves & (error > gates.residual_px))
    z = np.where(trusted, clip.depth.z, np.float32(0))
    points = clip.points and replace(clip.points, valid=clip.points.valid & (trusted | ~clip.depth.valid))
    return clip.with_(depth=replace(clip.depth, z=z, valid=trusted), points=points)


def _narrow_motion(clip: AnnotatedClip, gates: PixelGates) -> AnnotatedClip:
    motion = clip.motion
    if motion is None:
        return clip
    scale = _to_reference(clip)
    valid = motion.scene_flow_valid & _trusted(clip.flow, gates, scale, motion.scene_flow_valid.shape)
    changes = {"scene_flow_valid": valid}
    if motion.key_scene_flow_valid is not None:
        before = motion.key_scene_flow_valid
        changes["key_scene_flow_valid"] = before & _trusted(clip.key_flow, gates, scale, before.shape)
    return clip.with_(motion=replace(motion, **changes))


def _trusted(flow: Flow | None, gates: PixelGates, scale: float, shape: tuple[int, ...]) -> Bool[np.ndarray, "P H W"]:
    trusted = np.ones(shape, bool)
    if flow is None:
        return trusted
    if gates.cycle_px is not None:
        import torch

        from shared import warp

        error = warp.cycle_error(torch.tensor(flow.forward), torch.tensor(flow.backward))
        trusted &= (error * scale <= gates.cycle_px).numpy()
    if gates.uncertainty is not None and flow.uncertainty is not None:
        trusted &= flow.uncertainty <= gates.uncertainty
    return trusted


def _to_reference(clip: AnnotatedClip) -> float:
    return REFERENCE_WIDTH / clip.shape[2]
