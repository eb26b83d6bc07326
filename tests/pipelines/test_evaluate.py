"""Labels against truth: nothing is wrong with the truth itself, and each planted error shows in its number."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scene

from pipelines import evaluate, truth
from shared import shards
from shared.clip import AnnotatedClip

SIMULATED = Path(__file__).parents[3] / "shared/data/truth"
PLAIN = shards.Store(codec="plain")


def write(folder: Path, *clips: AnnotatedClip) -> str:
    items = [(clip.id, shards.encode(clip, PLAIN), shards.index_row(clip)) for clip in clips]
    shards.write_shard(str(folder / "shards"), "x-000000", items)
    return str(folder)


def npz(folder: Path, clip: AnnotatedClip) -> Path:
    """The clip's truth in the layout of truth files; 1.5e-4 in log depth is their step."""
    shape = clip.shape
    q = np.round((np.log(clip.depth.z.astype(np.float64)) + 3) / 1.5e-4).astype(np.int64)
    delta = np.diff(q, axis=-1, prepend=0).astype(np.uint16)
    starts = np.arange(0, shape[0] - 1, 4)
    path = folder / f"{truth.stem(clip.source)}.npz"
    np.savez(
        path,
        shape=shape,
        depth_delta=delta,
        valid=np.packbits(clip.depth.valid),
        dynamic=np.packbits(clip.motion.dynamic),
        visible=np.packbits(np.ones((len(starts), *shape[1:]), bool)),
        world_from_cam=clip.cameras.world_from_cam,
        intrinsics=clip.cameras.intrinsics[0],
        frames=starts,
        flow_forward=clip.flow.forward[starts].astype(np.float16),
        scene_flow=clip.motion.scene_flow[starts].astype(np.float16),
        fps=clip.fps,
    )
    return path


def numbers(clip: AnnotatedClip, true: AnnotatedClip) -> dict[str, float]:
    return evaluate.evaluate_clip(clip, truth.from_clip(true))


def test_the_truth_has_no_error(tmp_path: Path) -> None:
    clips = [scene.tiny("orbit"), scene.tiny("many_moving")]
    table, found = evaluate.evaluate_labels(write(tmp_path / "a", *clips), write(tmp_path / "b", *clips))
    total = found["total"]
    assert set(found["clips"]) == {clip.id for clip in clips}
    assert total["depth.median.abs_rel"] < 1e-6
    assert total["cameras.ate"] < 1e-6
    assert total["flow.epe"] == 0
    assert total["points.rel"] < 1e-5
    assert total["scene_flow.epe3d"] < 1e-6
    assert (total["dynamic.iou"], total["scene_flow.kept"], total["scene_flow.static_zero"]) == (1, 1, 1)
    assert len(table.splitlines()) == 4
    json.dumps(found, allow_nan=False)


def test_another_unit_is_no_error_and_each_planted_error_is_found() -> None:
    true = scene.tiny("orbit", frames=9)
    depth, cameras, motion = true.depth, true.cameras, true.motion
    poses = cameras.world_from_cam.copy()
    poses[:, :3, 3] *= 0.25
    other_unit = true.with_(
        depth=replace(depth, z=depth.z * np.float32(0.25)),
        cameras=replace(cameras, world_from_cam=poses),
        motion=replace(motion, scene_flow=motion.scene_flow * np.float32(0.25)),
    )
    found = numbers(other_unit, true)
    assert max(found[k] for k in ("depth.median.abs_rel", "cameras.ate", "points.rel", "scene_flow.epe3d")) < 1e-5

    ramp = np.linspace(0.9, 1.1, 9, dtype=np.float32)[:, None, None]
    assert numbers(true.with_(depth=replace(depth, z=depth.z * ramp)), true)["depth.median.abs_rel"] == pytest.approx(
        0.05, rel=0.15
    )
    shifted = true.with_(depth=replace(depth, z=depth.z * np.float32(0.5) + 3))
    affine = numbers(shifted, true)
    assert affine["depth.affine.abs_rel"] < 1e-4 < 0.05 < affine["depth.lad.abs_rel"]
    off = true.with_(flow=replace(true.flow, forward=true.flow.forward + np.float32((3, 4))))
    assert numbers(off, true)["flow.epe"] == pytest.approx(5, rel=1e-5)
    longer = replace(cameras, intrinsics=cameras.intrinsics * (1.06, 1.06, 1, 1))
    assert numbers(true.with_(cameras=longer), true)["cameras.focal_error_percent"] == pytest.approx(6)
    nothing = replace(motion, dynamic=np.zeros_like(motion.dynamic))
    assert numbers(true.with_(motion=nothing), true)["dynamic.iou"] == 0
    half = replace(motion, scene_flow=motion.scene_flow * np.float32(0.5))
    expected = np.linalg.norm(motion.scene_flow[motion.dynamic[:-1]], axis=-1).mean() / 2
    assert numbers(true.with_(motion=half), true)["scene_flow.epe3d"] == pytest.approx(expected, rel=1e-4)


def test_coverage_counts_what_is_valid() -> None:
    true = scene.tiny("lateral")
    valid = true.depth.valid.copy()
    valid[:, :12] = False
    found = numbers(true.with_(depth=replace(true.depth, valid=valid, z=np.where(valid, true.depth.z, 0))), true)
    assert found["depth.coverage"] == pytest.approx(0.75)


def test_truth_files_are_matched_by_name_and_frames(tmp_path: Path) -> None:
    whole, other = scene.tiny("orbit", frames=17), scene.tiny("dolly", frames=9)
    folder = tmp_path / "truth"
    folder.mkdir()
    npz(folder, whole)
    part = AnnotatedClip(id="part", rgb=whole.rgb[4:9], fps=8.0, source="bucket/orbit-0.mp4", frames=np.arange(4, 9))
    rotation = whole.cameras.world_from_cam[4, :3, :3]
    first_from_world = np.linalg.inv(whole.cameras.world_from_cam[4])
    poses = first_from_world @ whole.cameras.world_from_cam[4:9]
    poses[:, 3] = (0, 0, 0, 1)
    scene_flow = (whole.motion.scene_flow[4:8] @ rotation).astype(np.float32)
    part = part.with_(
        depth=replace(whole.depth, z=whole.depth.z[4:9], valid=whole.depth.valid[4:9]),
        cameras=replace(whole.cameras, world_from_cam=poses, intrinsics=whole.cameras.intrinsics[4:9]),
        flow=replace(whole.flow, forward=whole.flow.forward[4:8], backward=whole.flow.backward[4:8]),
        motion=replace(
            whole.motion,
            dynamic=whole.motion.dynamic[4:9],
            scene_flow=scene_flow,
            scene_flow_valid=whole.motion.scene_flow_valid[4:8],
            key_scene_flow=None,
            key_scene_flow_valid=None,
            instances=None,
        ),
    )
    _, found = evaluate.evaluate_labels(write(tmp_path / "run", part, other), str(folder))
    numbers = found["clips"]["part"]
    assert numbers["depth.median.abs_rel"] < 1e-4
    assert numbers["cameras.ate"] < 1e-6
    assert numbers["flow.epe"] < 5e-3  # float16
    assert numbers["scene_flow.epe3d"] < 1e-3  # its axes are those of frame 4's camera
    assert numbers["dynamic.iou"] == 1
    assert found["unmatched"] == [other.id]


def test_one_agreeing_name_is_enough_for_names_to_decide(tmp_path: Path) -> None:
    """The first clip has no truth: it must not be held against the second one's."""
    first, second = scene.tiny("dolly"), scene.tiny("orbit")
    folder = tmp_path / "truth"
    folder.mkdir()
    npz(folder, second)
    _, found = evaluate.evaluate_labels(write(tmp_path / "run", first, second), str(folder))
    assert list(found["clips"]) == [second.id]
    assert found["unmatched"] == [first.id]
    assert found["matched_by"] == "name"


def test_foreign_names_are_taken_in_order_only_if_there_are_as_many(tmp_path: Path) -> None:
    clips = [scene.tiny("orbit"), scene.tiny("dolly")]
    run = write(tmp_path / "run", *(replace(clip, source=f"other-{i}.mp4") for i, clip in enumerate(clips)))
    table, found = evaluate.evaluate_labels(run, write(tmp_path / "true", *clips))
    assert found["total"]["depth.median.abs_rel"] < 1e-6
    assert found["matched_by"] == "order"
    assert table.endswith("no file name agrees: taken in order")
    with pytest.raises(ValueError, match="none of 2 clips has its source"):
        evaluate.evaluate_labels(run, write(tmp_path / "one", clips[0]))


def test_a_resized_prediction_meets_resized_truth() -> None:
    """A camera of 1.5 times the resolution, cropped to 64 columns: the same world, seen by a finer grid."""
    small = scene.clip("orbit", frames=5, height=48, width=64, focal=60.0)
    large = scene.clip("orbit", frames=5, height=72, width=96, focal=90.0)
    crop = slice(8, 88)
    pred = AnnotatedClip(
        id="crop",
        rgb=large.rgb[:, :, crop],
        fps=8.0,
        source=small.source,
        frames=small.frames,
        depth=replace(large.depth, z=large.depth.z[:, :, crop], valid=large.depth.valid[:, :, crop]),
        cameras=replace(large.cameras, intrinsics=large.cameras.intrinsics - (0, 0, 8, 0)),
        flow=replace(large.flow, forward=large.flow.forward[:, :, crop], backward=large.flow.backward[:, :, crop]),
    )
    true = truth.from_clip(small).of(pred)
    assert np.allclose(true.intrinsics[0], (90, 90, 40, 36))
    found = evaluate.evaluate_clip(pred, truth.from_clip(small))
    assert found["cameras.focal_error_percent"] < 1e-9
    assert found["flow.epe"] < 0.15
    assert found["depth.median.abs_rel"] < 0.02


def test_a_still_camera_is_flagged(tmp_path: Path) -> None:
    clip = scene.tiny("static")
    table, found = evaluate.evaluate_labels(write(tmp_path / "a", clip), write(tmp_path / "b", clip))
    assert found["clips"][clip.id]["cameras.near_still"] == 1
    assert "cameras.auc30" not in found["clips"][clip.id]  # it goes nowhere: there is no direction to be right about
    assert "near_still" in table


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    run = write(tmp_path / "a", scene.tiny("orbit"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no truth"):
        evaluate.evaluate_labels(run, str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="none of 1 clips"):
        evaluate.evaluate_labels(run, write(tmp_path / "b", scene.tiny("dolly", frames=5)))
    (tmp_path / "bad").mkdir()
    np.savez(tmp_path / "bad" / "orbit-0.npz", shape=(9, 48, 64))
    with pytest.raises(ValueError, match="holds no array 'frames'"):
        evaluate.evaluate_labels(run, str(tmp_path / "bad"))


def test_a_truth_file_whose_arrays_disagree_is_refused(tmp_path: Path) -> None:
    """Bits that are missing would be taken for zeros, and the figures would be wrong without a word."""
    path = npz(tmp_path, scene.tiny("orbit"))
    whole = dict(np.load(path))
    for name in ("valid", "dynamic", "visible", "world_from_cam", "intrinsics", "scene_flow"):
        np.savez(path, **{**whole, name: whole[name][:1]})
        with pytest.raises(ValueError, match=rf"orbit-0.npz: not a truth file: {name} has the shape"):
            truth.from_npz(path)
    for data in (path.read_bytes()[:2000], b"text"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a truth file: File is not a zip file"):
            truth.from_npz(path)


@pytest.mark.skipif(not SIMULATED.is_dir(), reason="the simulated clips with truth are not on this machine")
def test_simulated_truth_agrees_with_itself() -> None:
    """Depth and cameras of the simulator, read by us, give its own flow on what stands still."""
    found = truth.from_npz(SIMULATED / "mj_orbit.npz")
    fx, fy, cx, cy = found.intrinsics[0]
    for pair, (a, b) in enumerate(found.pairs):
        v, u = np.mgrid[: found.z.shape[1], : found.z.shape[2]] + 0.5
        z = found.z[a].astype(np.float64)
        p = np.stack(((u - cx) / fx * z, (v - cy) / fy * z, z, np.ones_like(z)), -1)
        x, y, depth, _ = np.moveaxis(p @ (np.linalg.inv(found.world_from_cam[b]) @ found.world_from_cam[a]).T, -1, 0)
        still = found.valid[a] & ~found.dynamic[a]
        error = np.hypot(
            fx * x / depth + cx - u - found.flow[pair, ..., 0], fy * y / depth + cy - v - found.flow[pair, ..., 1]
        )
        assert np.percentile(error[still], 99) < 0.02
