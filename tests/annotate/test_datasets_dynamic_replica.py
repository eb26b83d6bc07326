"""Dynamic Replica: half floats in PNGs, PyTorch3D's cameras, flow of double width."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import drawing, imported
from miniatures import dynamic_replica as miniature

from annotate.datasets import reading, selfcheck
from annotate.datasets.dynamic_replica import DynamicReplica, camera_of
from annotate.flow.dis import Dis
from annotate.motion import Motion

LEFT = DynamicReplica(cameras=("left",))


@pytest.mark.parametrize("format_", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_a_sequence_comes_back_as_it_was_written(tmp_path: Path, format_: str) -> None:
    miniature.write(tmp_path, format_=format_)
    clip, true = imported.clip(LEFT, tmp_path, 30.0), drawing.true()
    assert imported.point_error_mm(clip, true) < 5
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics, rtol=1e-9)
    assert not clip.depth.valid[:, 0, :4].any()
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)


def test_flow_is_u_beside_v_and_its_masks_are_kept(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip, true = imported.clip(LEFT, tmp_path, 30.0), drawing.true()
    known = clip.flow.uncertainty == 0
    assert not known[:, 5:8, 5:8].any()
    assert known.mean() > 0.99
    assert imported.flow_error_px(clip, true, known) < 0.01
    assert np.abs(clip.flow.backward - true.clip.flow.backward)[:, 10:].max() < 0.01


def test_poses_do_not_depend_on_the_code_under_test() -> None:
    """A point of the world lands where PyTorch3D's own formula puts it."""
    true = drawing.true()
    view = miniature.viewpoint(true, 2, "ndc_isotropic")
    world_from_cam, (fx, fy, cx, cy) = camera_of("", view, drawing.HEIGHT, drawing.WIDTH)
    point = true.p_world[2, 10, 20]
    x, y, z = point @ np.array(view["R"]) + np.array(view["T"])
    half = np.array([drawing.WIDTH, drawing.HEIGHT]) / 2
    ndc = np.array(view["focal_length"]) * (x, y) / z + np.array(view["principal_point"])
    on_screen = half - ndc * half.min()
    p_cam = np.linalg.inv(world_from_cam) @ np.append(point, 1)
    np.testing.assert_allclose([fx * p_cam[0] / p_cam[2] + cx, fy * p_cam[1] / p_cam[2] + cy], on_screen, atol=1e-9)
    np.testing.assert_allclose(on_screen, (20.5, 10.5), atol=1e-6)


def test_scene_flow_by_true_flow_is_true(tmp_path: Path) -> None:
    miniature.write(tmp_path, tracks=False)
    clip, true = imported.clip(LEFT, tmp_path, 30.0), drawing.true()
    done = Motion().load()(clip, Dis().load())
    assert done.motion.scene_flow_valid[done.motion.dynamic[:-1]].mean() > 0.2
    assert imported.scene_flow_error_mm(done, true) < 25
    error = np.linalg.norm(done.motion.scene_flow - true.clip.motion.scene_flow, axis=-1)
    assert 1000 * np.median(error[done.motion.scene_flow_valid & done.motion.dynamic[:-1]]) < 8


def test_a_number_is_no_reason_to_move(tmp_path: Path) -> None:
    """The room's left third has an instance number but is not in the mask of people and animals."""
    miniature.write(tmp_path, kind="static")
    clip = imported.clip(LEFT, tmp_path, 30.0)
    assert set(np.unique(clip.motion.instances)) == {0, 1}


def test_both_cameras_are_scenes(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    uris = list(DynamicReplica().scenes(str(tmp_path)))
    assert uris == [f"{folder}/000001-3_obj_left", f"{folder}/000001-3_obj_right"]
    assert list(DynamicReplica().scenes(str(folder))) == uris
    assert DynamicReplica().open(uris[1]).tracks(np.arange(3)) is None


def test_an_index_is_read_once_for_all_of_its_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 145,200 frames takes seconds; one that is written anew is read anew."""
    miniature.write(tmp_path)
    reads = []
    read = reading.gzipped_items
    monkeypatch.setattr(reading, "gzipped_items", lambda uri: reads.append(uri) or read(uri))
    uris = list(DynamicReplica().scenes(str(tmp_path)))
    assert [len(DynamicReplica().open(uri).facts.shots[0]) for uri in uris] == [drawing.FRAMES] * 2
    assert len(reads) == 1
    index = next(tmp_path.rglob("*.jgz"))
    frames = [frame for frame in json.loads(gzip.decompress(index.read_bytes())) if frame["frame_number"] != 4]
    drawing.jgz(index, frames)
    assert [len(DynamicReplica().open(uri).facts.shots[0]) for uri in uris] == [drawing.FRAMES - 1] * 2


def test_flow_with_its_halves_swapped_is_refused_with_the_figure(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    true = drawing.true()
    for t in range(4):
        swapped = np.concatenate((true.clip.flow.forward[t, ..., 1], true.clip.flow.forward[t, ..., 0]), axis=1)
        path = folder / f"000001-3_obj_left/flow_forward/000001-3_obj_left-{t:04d}.png"
        drawing.image(path, drawing.half_bits(swapped))
    with pytest.raises(ValueError, match=r"flow is \d\.\d+ px away from what its depth and cameras show"):
        selfcheck.check(imported.only_scene(LEFT, tmp_path))


def test_tracks_that_would_run_code_are_refused(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    path = folder / "000001-3_obj_left/trajectories/000001-3_obj_left-0000.pth"
    torch.save({"traj_3d_world": Path("x")}, path)
    with pytest.raises(ValueError, match=r"0000.pth: not tracks that can be read without running their code"):
        selfcheck.check(imported.only_scene(LEFT, tmp_path))


def test_tracks_are_kept_in_the_world_of_the_clip(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip, true = imported.clip(LEFT, tmp_path, 30.0), drawing.true()
    assert imported.track_error_mm(clip, true) < 0.01
    _, visible, _ = drawing.tracks(true)
    np.testing.assert_array_equal(clip.tracks.visible, visible[:, visible.any(0)])


def test_tracks_may_be_numpy_arrays(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    for path in (folder / "000001-3_obj_left/trajectories").iterdir():
        found = torch.load(path, weights_only=True)
        torch.save({name: value.numpy() for name, value in found.items()}, path)
    assert imported.clip(LEFT, tmp_path, 30.0).scores["selfcheck_tracks"] < 0.005
