"""What tests of importers share: a scene cut and loaded as a worker would, and its distance from the truth."""

from pathlib import Path

import numpy as np
from miniatures import drawing

from annotate.cut import Cut
from annotate.datasets import importing, selfcheck
from annotate.datasets.dataset import Dataset, Scene, place_below
from shared.clip import AnnotatedClip


def cut(fps: float, frames: int = drawing.FRAMES, height: int = drawing.HEIGHT, width: int = drawing.WIDTH) -> Cut:
    return Cut(frames=frames, fps=fps, height=height, width=width)


def only_scene(dataset: Dataset, root: Path) -> Scene:
    (uri,) = dataset.scenes(str(root))
    dataset.refuse_excluded(uri, place_below(str(root), uri))
    return dataset.open(uri)


def clip(dataset: Dataset, root: Path, fps: float, scene: Scene | None = None, **size: int) -> AnnotatedClip:
    """The only clip of the only scene, self-checks passed."""
    scene = scene or only_scene(dataset, root)
    knobs = cut(fps, **size)
    (span,) = importing.spans(scene, knobs, selfcheck.check(scene))
    assert span.reason == ""
    return importing.load(scene, span, knobs, dataset.kind)


def point_error_mm(clip: AnnotatedClip, true: drawing.Truth, least_valid: float = 0.9) -> float:
    """The worst distance of a valid point from the true one, in the frame of the first camera, in millimeters."""
    assert clip.depth is not None
    assert clip.depth.valid.mean() >= least_valid
    error = np.linalg.norm(clip.pointmap() - true.clip.pointmap(), axis=-1)
    return 1000 * float(error[clip.depth.valid].max())


def pose_error(clip: AnnotatedClip, true: drawing.Truth) -> float:
    assert clip.cameras is not None
    return float(np.abs(clip.cameras.world_from_cam - true.clip.cameras.world_from_cam).max())


def flow_error_px(clip: AnnotatedClip, true: drawing.Truth, where: np.ndarray | None = None) -> float:
    """The worst of both directions (forward only where `where` says)."""
    assert clip.flow is not None
    ahead = np.linalg.norm(clip.flow.forward - true.clip.flow.forward, axis=-1)
    return float(ahead[where].max() if where is not None else ahead.max())


def track_error_mm(clip: AnnotatedClip, true: drawing.Truth) -> float:
    """The worst distance of a valid track from the true one of the same place; every true one that is seen must be there."""
    assert clip.tracks is not None
    p_world, visible, _ = drawing.tracks(true)
    seen = visible.any(0)
    first_from_world = np.linalg.inv(true.world_from_cam[0])
    expected = (p_world @ first_from_world[:3, :3].T + first_from_world[:3, 3])[:, seen]
    assert clip.tracks.p_world.shape == expected.shape
    error = np.linalg.norm(clip.tracks.p_world - expected, axis=-1)
    return 1000 * float(error[clip.tracks.valid].max())


def scene_flow_error_mm(clip: AnnotatedClip, true: drawing.Truth) -> float:
    """The worst at valid pixels; static ones must be exactly 0."""
    assert clip.motion is not None
    valid = clip.motion.scene_flow_valid
    assert valid.any()
    assert not clip.motion.scene_flow[~clip.motion.dynamic[:-1]].any()
    error = np.linalg.norm(clip.motion.scene_flow - true.clip.motion.scene_flow, axis=-1)
    return 1000 * float(error[valid].max())
