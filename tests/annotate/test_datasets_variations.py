"""Trees as other people may write or unpack them: the same truth in files that differ in what the layouts leave open."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import pytest
from miniatures import imported
from miniatures.independent import extra_sets, files, paper_sets
from miniatures.independent.world import World, rigid, rotation

from annotate.datasets import selfcheck
from annotate.datasets.panda70m import Panda70M
from pipelines.datasets import DATASETS
from shared.clip import AnnotatedClip

MINI = World(num_frames=4, width=64, height=48, focal=56.0)
STILL = replace(MINI, focal=32.0, boxes_move=False)
WRITERS = {
    "pointodyssey": (paper_sets.point_odyssey, 30.0, MINI),
    "bedlam": (paper_sets.bedlam, 30.0, MINI),
    "bedlam2": (paper_sets.bedlam2, 30.0, MINI),
    "dynamic_replica": (paper_sets.dynamic_replica, 30.0, MINI),
    "omniworld": (paper_sets.omniworld, 24.0, MINI),
    "tartanair": (extra_sets.tartanair, 10.0, STILL),
    "tartanair_v2": (extra_sets.tartanair_v2, 10.0, STILL),
    "kubric": (extra_sets.kubric, 12.0, MINI),
    "spring": (extra_sets.spring, 24.0, MINI),
    "virtual_kitti2": (extra_sets.virtual_kitti2, 10.0, MINI),
    "sintel": (extra_sets.sintel, 24.0, MINI),
    "realestate10k": (extra_sets.realestate10k, 10.0, STILL),
}


@dataclass(frozen=True)
class Low(World):
    """A camera close to the floor, whose depth changes by percents within a pixel."""

    height_m: float = 0.3

    @cached_property
    def world_from_cam(self) -> np.ndarray:
        north = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]])
        turns = (rotation("z", 4 - 1.3 * s) @ rotation("x", -8) @ north for s in range(self.num_frames))
        return np.array([rigid(r, (0.1 + 0.06 * s, -2.6 + 0.04 * s, self.height_m)) for s, r in enumerate(turns)])


@dataclass(frozen=True)
class CloseUp(World):
    """Movers on most of the picture."""

    BOXES = (
        ((-2.0, 2.4, 0.5), (0.3, 0.25, 0.5)),
        ((0.75, -0.3, 1.2), (0.8, 0.3, 1.2)),
        ((-0.7, 0.6, 1.2), (0.35, 0.25, 0.8)),
    )


def _clip(kind: str, root: Path, world: World) -> AnnotatedClip:
    uri = next(iter(DATASETS[kind].scenes(str(root))))
    size = {"frames": world.num_frames, "height": world.height, "width": world.width}
    return imported.clip(DATASETS[kind], root, WRITERS[kind][1], DATASETS[kind].open(uri), **size)


def _point_errors_mm(clip: AnnotatedClip, world: World) -> np.ndarray:
    first = world.cam_from_world[0]
    true = world.points @ first[:3, :3].T + first[:3, 3]
    return 1000 * np.linalg.norm(clip.pointmap() - true, axis=-1)[clip.depth.valid]


def _pose_error(clip: AnnotatedClip, world: World) -> float:
    return float(np.abs(clip.cameras.world_from_cam - world.cam_from_world[0] @ world.world_from_cam).max())


@pytest.mark.parametrize("kind", list(WRITERS))
def test_what_lies_about_in_unpacked_archives_is_no_scene(kind: str, tmp_path: Path) -> None:
    write, _, world = WRITERS[kind]
    write(tmp_path, replace(world, num_frames=2))
    before = list(DATASETS[kind].scenes(str(tmp_path)))
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        mac = tmp_path / "__MACOSX" / folder.relative_to(tmp_path)
        mac.mkdir(parents=True, exist_ok=True)
        for name in (".DS_Store", "README.txt", "LICENSE.txt", "checksums.md5"):
            (folder / name).write_text("read me\n")
        for path in [path for path in folder.iterdir() if path.is_file()]:
            (mac / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert list(DATASETS[kind].scenes(str(tmp_path))) == before
    assert DATASETS[kind].open(before[0]).frame is not None


def _named_otherwise(root: Path) -> None:
    """Four digits, capitals."""
    for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
        path.rename(path.with_name(re.sub(r"_0(\d{4})\.", r"_\1.", path.name).replace("jpg", "JPG")))


def _arrays(root: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    path = next(root.rglob("anno.npz"))
    np.savez(path, **change(dict(np.load(path))))


def _version_1_1(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """0 hidden, 1 visible, 2 not valid: no array says what is valid."""
    seen = arrays.pop("valids") & arrays["visibs"]
    code = seen.astype(np.uint8)
    code[:, ::7] = np.where(seen[:, ::7], 1, 2)
    return arrays | {"visibs": code}


@pytest.mark.parametrize(
    "change",
    [
        _named_otherwise,
        lambda root: _arrays(root, lambda a: {name: np.asfortranarray(one) for name, one in a.items()}),
        lambda root: _arrays(root, _version_1_1),
        lambda root: _arrays(root, lambda a: a | {"intrinsics": a["intrinsics"][0]}),
        lambda root: _arrays(root, lambda a: a | {"notes": np.array([{"a": 1}], object)}),
    ],
    ids=["names", "columns first", "v1.1", "one K", "an object array beside"],
)
def test_pointodyssey_as_others_save_it(change: Callable[[Path], None], tmp_path: Path) -> None:
    paper_sets.point_odyssey(tmp_path, MINI)
    change(tmp_path)
    clip = _clip("pointodyssey", tmp_path, MINI)
    assert _point_errors_mm(clip, MINI).max() < 20
    assert _pose_error(clip, MINI) < 1e-5
    np.testing.assert_array_equal(clip.motion.dynamic, MINI.dynamic)
    assert clip.tracks.visible.any()


def test_pointodyssey_without_masks_leaves_motion_to_annotators(tmp_path: Path) -> None:
    paper_sets.point_odyssey(tmp_path, MINI)
    for path in tmp_path.rglob("mask_*.png"):
        path.unlink()
    clip = _clip("pointodyssey", tmp_path, MINI)
    assert clip.motion is None
    assert clip.depth.valid.any()
    assert clip.tracks is not None


def test_a_floor_that_is_seen_from_low_contradicts_no_track(tmp_path: Path) -> None:
    world = Low(num_frames=4, width=64, height=48, focal=56.0)
    paper_sets.point_odyssey(tmp_path, world)
    scene = imported.only_scene(DATASETS["pointodyssey"], tmp_path)
    assert selfcheck.check(scene)["selfcheck_tracks"] < 0.003


def test_a_floor_that_is_seen_from_low_is_no_edge(tmp_path: Path) -> None:
    world = Low(num_frames=4, width=64, height=48, focal=56.0)
    paper_sets.bedlam(tmp_path, world)
    assert _clip("bedlam", tmp_path, world).depth.valid.mean() > 0.75


def test_an_instance_of_few_pixels_is_told_by_its_flow(tmp_path: Path) -> None:
    world = Low(num_frames=4, width=64, height=48, focal=56.0)
    assert 0 < (world.ids[0] == 3).sum() < 60
    paper_sets.dynamic_replica(tmp_path, world, tracks=False)
    np.testing.assert_array_equal(_clip("dynamic_replica", tmp_path, world).motion.dynamic, world.dynamic)


def test_where_all_has_a_number_poses_are_checked_all_the_same(tmp_path: Path) -> None:
    paper_sets.point_odyssey(tmp_path, MINI)
    colors = np.array([(60, 60, 60), (190, 20, 30), (20, 200, 60), (40, 60, 220)], np.uint8)
    for t, path in enumerate(sorted(tmp_path.rglob("mask_*.png"))):
        files.image(path, colors[np.maximum(MINI.ids[t], 0)])
    np.testing.assert_array_equal(_clip("pointodyssey", tmp_path, MINI).motion.dynamic, MINI.dynamic)
    _arrays(tmp_path, lambda a: a | {"extrinsics": np.linalg.inv(a["extrinsics"])})
    with pytest.raises(ValueError, match="if its poses are inverted"):
        selfcheck.check(imported.only_scene(DATASETS["pointodyssey"], tmp_path))


@pytest.mark.parametrize("kind", ["sintel", "spring"])
def test_a_close_up_of_movers_is_not_refused(kind: str, tmp_path: Path) -> None:
    world = CloseUp(num_frames=4, width=96, height=64)
    assert world.dynamic.mean() > 0.5
    WRITERS[kind][0](tmp_path, world)
    clip = _clip(kind, tmp_path, world)
    assert _point_errors_mm(clip, world).max() < 0.02
    assert (clip.motion.dynamic & world.dynamic).sum() > 0.95 * (clip.motion.dynamic | world.dynamic).sum()


def test_only_what_is_no_person_tells_persons_too(tmp_path: Path) -> None:
    paper_sets.bedlam(tmp_path, MINI)
    for part in ("body", "clothing", "hair"):
        for path in tmp_path.rglob(f"*_{part}.png"):
            path.unlink()
    clip = _clip("bedlam", tmp_path, MINI)
    np.testing.assert_array_equal(clip.motion.instances > 0, MINI.ids > 0)
    assert clip.motion.dynamic[MINI.dynamic].all()


def test_bedlam2_takes_the_middle_of_twelve_sub_frames(tmp_path: Path) -> None:
    paper_sets.bedlam2(tmp_path, MINI)
    table = next(tmp_path.rglob("*_camera.csv"))
    whole = table.read_text()
    for k in range(12):
        turned = whole if k == 6 else whole.replace(".png,", ".png,5")
        table.with_name(f"seq_000000_camera_subframe_{k}.csv").write_text(turned)
    table.unlink()
    assert _pose_error(_clip("bedlam2", tmp_path, MINI), MINI) < 1e-5


@pytest.mark.parametrize("place", ["..", "annotations", "annotations/OmniWorld-Game", "videos"])
def test_omniworld_is_found_from_above_and_from_below(place: str, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    paper_sets.omniworld(root, MINI)
    assert _point_errors_mm(_clip("omniworld", (root / place).resolve(), MINI), MINI).max() < 0.6


@pytest.mark.parametrize("kind", ["tartanair", "tartanair_v2"])
def test_tartanairs_flow_may_be_numbered_in_fewer_digits(kind: str, tmp_path: Path) -> None:
    WRITERS[kind][0](tmp_path, STILL)
    for path in [*tmp_path.rglob("??????_??????_*.npy"), *tmp_path.rglob("??????_??????_*.png")]:
        path.rename(path.with_name(re.sub(r"00(\d{4})_00(\d{4})_", r"\1_\2_", path.name)))
    scene = imported.only_scene(DATASETS[kind], tmp_path)
    flow, _, visible, _ = STILL.flow(0, 1)
    found = scene.flow(0, 1)
    assert np.abs(found.values - flow)[visible].max() < 0.02


def _every_second(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        (key,) = file
        values = file[key][::2, ::2]
        del file[key]
        file[key] = values


def test_spring_at_the_size_of_its_pictures(tmp_path: Path) -> None:
    extra_sets.spring(tmp_path, MINI)
    for path in [*tmp_path.rglob("*.dsp5"), *tmp_path.rglob("*.flo5")]:
        _every_second(path)
    clip = _clip("spring", tmp_path, MINI)
    assert _point_errors_mm(clip, MINI).max() < 0.02
    np.testing.assert_array_equal(clip.motion.dynamic, MINI.dynamic)


def test_spring_drawn_at_twice_the_size_is_not_a_quarter_of_a_pixel_off(tmp_path: Path) -> None:
    """Its four samples of a pixel lie around the center; the first alone would be 18 mm off at a depth of 4 m."""
    extra_sets.spring(tmp_path, MINI)
    fine = replace(MINI, width=2 * MINI.width, height=2 * MINI.height, focal=2 * MINI.focal)
    for path in tmp_path.rglob("*.dsp5"):
        t, name = int(path.stem[-4:]) - 1, path.parent.name
        other = t + {"disp1_left": 0, "disp2_FW_left": 1, "disp2_BW_left": -1}[name]
        z = fine.project(fine.at(fine.points[t], fine.ids[t], t, other), other)[1]
        _overwrite(path, MINI.focal * extra_sets.SPRING_BASELINE_M / np.where(fine.sky[t], np.inf, z))
    for path in tmp_path.rglob("*.flo5"):
        t = int(path.stem[-4:]) - 1
        flow, defined, _, _ = fine.flow(t, t + (1 if "FW" in path.name else -1))
        _overwrite(path, np.where(defined[..., None], flow / 2, np.nan))
    clip = _clip("spring", tmp_path, MINI)
    assert np.percentile(_point_errors_mm(clip, MINI), 90) < 0.01
    flow, _, visible, _ = MINI.flow(0, 1)
    assert np.percentile(np.linalg.norm(clip.flow.forward[0] - flow, axis=-1)[visible], 90) < 1e-3


def _overwrite(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        (key,) = file
        file[key][...] = values.astype(np.float32)


def _column(path: Path, column: int, header: bool, sep: str | None = None) -> None:
    """Frame t's numbers from this column on (fx, fy) times 1 + t / 10."""
    lines = [line.split(sep) for line in path.read_text().splitlines()]
    for t, words in enumerate(lines[header:]):
        words[column : column + 2] = [repr(float(word) * (1 + t / 10)) for word in words[column : column + 2]]
    path.write_text("\n".join((sep or " ").join(words) for words in lines) + "\n")


def _zoomed(kind: str, root: Path) -> None:
    """Each frame has another focal length than the one before."""
    zoom = 1 + np.arange(MINI.num_frames) / 10
    if kind == "pointodyssey":
        scale = np.array([[[z, 1, 1], [1, z, 1], [1, 1, 1]] for z in zoom])
        _arrays(root, lambda a: a | {"intrinsics": a["intrinsics"] * scale})
    elif kind == "bedlam":
        path = next(root.rglob("*_camera.csv"))
        lines = [line.split(",") for line in path.read_text().splitlines()]
        for t, words in enumerate(lines[1:]):
            words[7] = str(float(words[7]) * zoom[t])
        path.write_text("\n".join(map(",".join, lines)) + "\n")
    elif kind == "dynamic_replica":
        path = next(root.rglob("*.jgz"))
        frames = json.loads(gzip.decompress(path.read_bytes()))
        for frame in frames:
            view = frame["viewpoint"]
            view["focal_length"] = [f * zoom[frame["frame_number"]] for f in view["focal_length"]]
        path.write_bytes(gzip.compress(json.dumps(frames).encode()))
    elif kind == "omniworld":
        path = next(root.rglob("camera/split_0.json"))
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"focals": (np.array(told["focals"]) * zoom).tolist()}))
    elif kind == "sintel":
        for t, path in enumerate(sorted(root.rglob("*.cam"))):
            data = path.read_bytes()
            k = np.frombuffer(data, "<f8", count=9, offset=4).reshape(3, 3).copy()
            k[[0, 1], [0, 1]] *= zoom[t]
            path.write_bytes(data[:4] + k.tobytes() + data[76:])
    elif kind == "virtual_kitti2":
        path = next(root.rglob("intrinsic.txt"))
        path.write_text("\n".join(line for line in path.read_text().splitlines() if line.split()[1] != "1") + "\n")
        _column(path, 2, header=True)
    else:
        path, column = {
            "spring": (root / "train/0001/cam_data/intrinsics.txt", 0),
            "realestate10k": (next(root.rglob("*.txt")), 1),
        }[kind]
        _column(path, column, header=kind == "realestate10k")


@pytest.mark.parametrize(
    "kind",
    ["pointodyssey", "bedlam", "dynamic_replica", "omniworld", "spring", "virtual_kitti2", "sintel", "realestate10k"],
)
def test_every_frame_has_its_own_focal_length(kind: str, tmp_path: Path) -> None:
    write, _, world = WRITERS[kind]
    write(tmp_path, world)
    _zoomed(kind, tmp_path)
    scene = DATASETS[kind].open(next(iter(DATASETS[kind].scenes(str(tmp_path)))))
    found = np.stack([scene.frame(int(number)).intrinsics for number in scene.facts.shots[0]])
    expected = world.focal * (1 + np.arange(world.num_frames) / 10)
    np.testing.assert_allclose(found[:, :2], np.stack((expected, expected), axis=1), rtol=1e-6)
    np.testing.assert_allclose(found[:, 2:], np.tile(world.intrinsics[2:], (world.num_frames, 1)), rtol=1e-6)


def test_spring_without_a_way_back_knows_what_moves_in_the_last_frame(tmp_path: Path) -> None:
    extra_sets.spring(tmp_path, MINI)
    for path in [*tmp_path.rglob("*_BW_*.dsp5"), *tmp_path.rglob("*_BW_*.flo5")]:
        path.unlink()
    last, true = _clip("spring", tmp_path, MINI).motion.dynamic[-1], MINI.dynamic[-1]
    assert (last & true).sum() > 0.9 * (last | true).sum()


@pytest.mark.parametrize(
    ("told", "shots"),
    [
        ("[['0:00:00.000', '0:00:05.000']]", 1),
        (["0:00:00.000", "0:00:05.000"], 1),
        ([[["0:00:00.000", "0:00:05.000"]]], 1),
        ("[['0:00:00.000', '0:00:02.000'], ['0:00:02.000', '0:00:05.000']]", 2),
        ([], 1),
    ],
)
def test_pandas_shots_are_counted_however_they_are_written(told: object, shots: int, tmp_path: Path) -> None:
    from miniatures import spatialvid

    spatialvid.panda(tmp_path, "0000001_00002", video=False, shot_boundary_detection=told)
    (uri,) = Panda70M().scenes(str(tmp_path))
    if shots == 1:
        assert Panda70M().describe(uri).caption
    else:
        with pytest.raises(ValueError, match=f"holds {shots} shots"):
            Panda70M().describe(uri)
