"""Virtual KITTI 2, Spring, Sintel, both TartanAirs, Kubric and RealEstate10K: read back, and what each is known for."""

from pathlib import Path

import numpy as np
import pytest
from miniatures import extras, imported

from annotate.datasets import selfcheck
from annotate.datasets.kubric import Kubric
from annotate.datasets.realestate10k import RealEstate10K
from annotate.datasets.sintel import Sintel
from annotate.datasets.spring import Spring
from annotate.datasets.tartanair import TartanAir
from annotate.datasets.tartanair_v2 import TartanAirV2
from annotate.datasets.virtual_kitti2 import VirtualKitti2

KITTI = VirtualKitti2(cameras=("Camera_0",))


def test_virtual_kitti(tmp_path: Path) -> None:
    true = extras.kitti(tmp_path)
    clip = imported.clip(KITTI, tmp_path, 10.0)
    assert imported.point_error_mm(clip, true) < 8
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics, rtol=1e-9)
    known = np.ones(clip.flow.forward.shape[:3], bool)
    known[:, 9, 9] = False
    assert imported.flow_error_px(clip, true, known) < 0.003
    assert (clip.flow.uncertainty[:, 9, 9] > 1).all()
    assert np.abs(clip.flow.backward - true.clip.flow.backward)[known].max() < 0.003
    assert clip.motion.sky[:, 0, :4].all()
    assert not clip.depth.valid[:, 0, :4].any()


def test_virtual_kittis_scene_flow_loses_the_cameras_motion(tmp_path: Path) -> None:
    true = extras.kitti(tmp_path)
    clip = imported.clip(KITTI, tmp_path, 10.0)
    np.testing.assert_array_equal(clip.motion.instances > 0, true.instances > 0)
    np.testing.assert_array_equal(clip.motion.dynamic[:-1], true.clip.motion.dynamic[:-1])
    assert clip.motion.scene_flow_valid[true.clip.motion.dynamic[:-1]].all()
    # a step of 0.3 mm, and points that turn with cameras are rounded to centimeters
    assert imported.scene_flow_error_mm(clip, true) < 1.0


def test_both_cameras_of_virtual_kitti(tmp_path: Path) -> None:
    extras.kitti(tmp_path)
    (tmp_path / "Scene01/clone/frames/rgb/Camera_1").mkdir()
    assert [uri.rpartition("/")[2] for uri in VirtualKitti2().scenes(str(tmp_path))] == ["Camera_0", "Camera_1"]


def test_spring(tmp_path: Path) -> None:
    true = extras.spring(tmp_path)
    clip = imported.clip(Spring(), tmp_path, 8.0)
    assert imported.point_error_mm(clip, true) < 0.01
    assert imported.pose_error(clip, true) < 1e-5
    assert imported.flow_error_px(clip, true) < 1e-5
    assert np.abs(clip.flow.backward - true.clip.flow.backward).max() < 1e-5
    assert clip.frames.tolist() == [1, 2, 3, 4, 5]
    assert not clip.depth.valid[:, 0, :4].any()


def test_springs_scene_flow_follows_from_flow_and_two_disparities(tmp_path: Path) -> None:
    true = extras.spring(tmp_path)
    clip = imported.clip(Spring(), tmp_path, 8.0)
    np.testing.assert_array_equal(clip.motion.dynamic[:-1], true.clip.motion.dynamic[:-1])
    assert clip.motion.scene_flow_valid[true.clip.motion.dynamic[:-1]].mean() > 0.99
    assert imported.scene_flow_error_mm(clip, true) < 0.05


def test_sintel(tmp_path: Path) -> None:
    true = extras.sintel(tmp_path)
    clip = imported.clip(Sintel(), tmp_path, 24.0)
    assert imported.point_error_mm(clip, true) < 0.01
    assert imported.pose_error(clip, true) < 1e-5
    hidden = clip.flow.uncertainty > 0
    assert hidden.sum() == 2 * len(hidden), "one pixel is hidden, one leaves the picture"
    assert imported.flow_error_px(clip, true, ~hidden) < 1e-5
    error = np.linalg.norm(clip.flow.backward - true.clip.flow.backward, axis=-1)
    assert np.median(error) < 0.2, "the way back is the way there, turned round"
    off = imported.only_scene(Sintel(integer_centers=False), tmp_path).frame(1)
    np.testing.assert_allclose(off.intrinsics[2:] + 0.5, true.clip.cameras.intrinsics[0, 2:])


def test_tartanair(tmp_path: Path) -> None:
    true = extras.tartanair(tmp_path)
    clip = imported.clip(TartanAir(), tmp_path, 8.0)
    assert imported.point_error_mm(clip, true) < 0.01
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics)
    still = ~true.clip.motion.dynamic[:-1]
    assert imported.flow_error_px(clip, true, still) < 1e-5
    assert not clip.motion.dynamic.any()
    assert not clip.motion.scene_flow.any()
    np.testing.assert_array_equal(clip.motion.scene_flow_valid, still & clip.depth.valid[:-1])
    assert clip.motion.key_scene_flow is not None
    assert clip.motion.sky[:, 0, :4].all()


def test_the_sky_of_amusement_is_known_to_be_corrupt(tmp_path: Path) -> None:
    extras.tartanair(tmp_path, "amusement")
    with pytest.raises(ValueError, match=r"excluded .*sky is corrupt"):
        imported.only_scene(TartanAir(), tmp_path)


@pytest.mark.parametrize("npz", [False, True])
def test_tartanair_v2(tmp_path: Path, npz: bool) -> None:
    true = extras.tartanair_v2(tmp_path, npz=npz)
    clip = imported.clip(TartanAirV2(), tmp_path, 8.0, height=48, width=48)
    assert imported.point_error_mm(clip, true) < 0.01
    assert imported.pose_error(clip, true) < 1e-5
    assert imported.flow_error_px(clip, true) < 0.0112, "half of 1/64 px, in u and v"


@pytest.mark.parametrize("depth", ["png", "tiff", "npy"])
def test_kubric(tmp_path: Path, depth: str) -> None:
    true = extras.kubric(tmp_path, depth=depth)
    clip = imported.clip(Kubric(), tmp_path, 12.0)
    assert imported.point_error_mm(clip, true) < (0.3 if depth == "png" else 0.01)
    assert imported.pose_error(clip, true) < 1e-5
    assert imported.flow_error_px(clip, true) < 1e-3
    assert np.abs(clip.flow.backward - true.clip.flow.backward).max() < 1e-3
    np.testing.assert_array_equal(clip.motion.instances, true.instances)
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)
    assert clip.motion.scene_flow_valid.all()
    assert imported.scene_flow_error_mm(clip, true) < 0.1
    error = np.linalg.norm(clip.motion.key_scene_flow - true.clip.motion.key_scene_flow, axis=-1)
    assert error.max() < 1e-3, "poses lead from any frame to any other"


def test_kubrics_flow_is_rows_first(tmp_path: Path) -> None:
    """An export that turned it round is refused with the figure."""
    extras.kubric(tmp_path, swapped=False)
    with pytest.raises(ValueError, match=r"flow is \d\.\d+ px away"):
        selfcheck.check(imported.only_scene(Kubric(), tmp_path))


def test_kubrics_depth_is_the_length_of_rays(tmp_path: Path) -> None:
    """Were it taken for z, points at the border would be a meter off."""
    true = extras.kubric(tmp_path, rays=False)
    clip = imported.clip(Kubric(), tmp_path, 12.0)
    assert imported.point_error_mm(clip, true) > 500


def test_realestate10k(tmp_path: Path) -> None:
    true = extras.realestate10k(tmp_path)
    clip = imported.clip(RealEstate10K(), tmp_path, 30.0)
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics, rtol=1e-9)
    np.testing.assert_array_equal(clip.rgb, true.clip.rgb)
    assert clip.depth is None
    assert not clip.motion.dynamic.any()
    assert not clip.cameras.metric


def test_text_without_frames_is_refused(tmp_path: Path) -> None:
    extras.realestate10k(tmp_path, frames=False)
    with pytest.raises(ValueError, match="holds 0 frames"):
        imported.only_scene(RealEstate10K(), tmp_path)
