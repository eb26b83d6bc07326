"""OmniWorld-Game: its depth, its units, its splits, and quaternions that are none."""

from pathlib import Path

import numpy as np
import pytest
from miniatures import drawing, imported
from miniatures import omniworld as miniature

from annotate.datasets import importing, reading, selfcheck
from annotate.datasets.omniworld import OmniWorld


@pytest.mark.parametrize("together", [False, True])
def test_a_recording_comes_back_as_it_was_written(tmp_path: Path, together: bool) -> None:
    miniature.write(tmp_path, together=together)
    clip, true = imported.clip(OmniWorld(), tmp_path, 24.0), drawing.true()
    assert imported.point_error_mm(clip, true) < 2
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics, rtol=1e-9)
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)
    assert clip.depth.metric
    assert clip.caption == "a box sways"
    assert not clip.depth.valid[:, :2, :4].any()
    assert clip.motion.sky[:, 0, :4].all()
    assert clip.motion.sky.sum() == 4 * drawing.FRAMES


def test_without_its_scale_it_is_not_metric(tmp_path: Path) -> None:
    miniature.write(tmp_path, metric=False)
    clip, true = imported.clip(OmniWorld(), tmp_path, 24.0), drawing.true()
    assert not clip.depth.metric
    assert not clip.cameras.metric
    valid = clip.depth.valid
    np.testing.assert_allclose(clip.depth.z[valid] * miniature.METERS_A_UNIT, true.z[valid], rtol=1e-3)
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)


def test_depth_ten_times_off_is_refused_with_the_figure(tmp_path: Path) -> None:
    """Dividing by 0.04 instead of 0.004, as another loader does, is the same as translations that are ten times too long."""
    true = drawing.true("dolly")
    trans = true.cam_from_world[:, :3, 3] / miniature.METERS_A_UNIT * 10
    miniature.write(tmp_path, trans=trans.tolist())
    with pytest.raises(ValueError, match=r"static points of one frame are \d+\.\d% away from the depth of another"):
        selfcheck.check(imported.only_scene(OmniWorld(), tmp_path))


def test_poses_the_other_way_round_are_refused(tmp_path: Path) -> None:
    pose = drawing.true().world_from_cam
    quats = [drawing.quaternion_wxyz(p[:3, :3]).tolist() for p in pose]
    miniature.write(tmp_path, quats=quats, trans=(pose[:, :3, 3] / miniature.METERS_A_UNIT).tolist())
    with pytest.raises(ValueError, match=r"away from the depth of another"):
        selfcheck.check(imported.only_scene(OmniWorld(), tmp_path))


def test_a_quaternion_far_from_unit_length_marks_a_gap(tmp_path: Path) -> None:
    quats = np.array([drawing.quaternion_wxyz(p[:3, :3]) for p in drawing.true().cam_from_world])
    quats[2] *= 3
    miniature.write(tmp_path, quats=quats.tolist())
    scene = imported.only_scene(OmniWorld(), tmp_path)
    spans = importing.spans(scene, imported.cut(24.0, frames=2), {})
    assert [span.frames.tolist() for span in spans] == [[0, 1], [3, 4]]
    miniature.write(tmp_path / "none", quats=(quats * 3).tolist())
    with pytest.raises(ValueError, match=r"no frame has .* unit quaternion"):
        imported.only_scene(OmniWorld(), tmp_path / "none")


def test_clips_end_where_splits_end_and_where_numbers_are_skipped(tmp_path: Path) -> None:
    miniature.write(tmp_path, splits=[[0, 1], [2, 4]])
    scene = imported.only_scene(OmniWorld(), tmp_path)
    spans = importing.spans(scene, imported.cut(24.0, frames=2), {})
    assert [(span.frames.tolist(), span.reason.partition(":")[0]) for span in spans] == [
        ([0, 1], ""),
        ([2, 4], "too slow"),
    ]


def test_broken_scenes_and_bad_solutions_are_left_out(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    with pytest.raises(ValueError, match="no frame has"):
        imported.only_scene(OmniWorld(max_reprojection_error=0.3), tmp_path)
    with pytest.raises(ValueError, match=r"excluded .*reported as broken"):
        OmniWorld().refuse_excluded("", "annotations/OmniWorld-Game/05017c153ac9")
    with pytest.raises(ValueError, match="were all of its archives unpacked"):
        OmniWorld().open(f"{tmp_path}/ffffffffffff")


def test_runs_are_read_as_coco_writes_them() -> None:
    """Sparse, even and dense masks, packed as COCO packs them."""
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        mask = rng.random((37, 53)) < density
        packed = miniature.coco(mask)
        np.testing.assert_array_equal(reading.run_lengths(packed["counts"], 37, 53), mask)
    with pytest.raises(ValueError, match="expected 4 x 4"):
        reading.run_lengths([3, 4], 4, 4)
