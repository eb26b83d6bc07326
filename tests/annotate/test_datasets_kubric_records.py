"""Kubric's published records: as tensorflow-datasets itself wrote one, and what is damaged or lacks something."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniatures import imported
from miniatures.independent import movi
from miniatures.independent.world import World

from annotate.datasets import kubric_records, selfcheck, tfrecord
from annotate.datasets.kubric import Kubric

GOLDEN = Path(__file__).parents[1] / "golden"
WORLD = World(num_frames=4, width=32, height=24, focal=27.0, ceiling=True)
"""What tests/golden/make_movi.py gave to tensorflow-datasets."""


@pytest.fixture
def golden() -> str:
    (uri,) = Kubric().scenes(str(GOLDEN))
    return uri


def test_a_record_of_tensorflow_datasets_gives_its_truth_back(golden: str) -> None:
    scene = Kubric().open(golden)
    scores = selfcheck.check(scene)
    assert scores["selfcheck_reprojection"] < 1e-4
    assert scores["selfcheck_half_pixel_px"] == 0
    assert scores["selfcheck_flow_px"] < 1e-3
    clip = imported.clip(Kubric(), GOLDEN, 12.0, scene, frames=4, height=24, width=32)
    first = WORLD.cam_from_world[0]
    np.testing.assert_array_equal(clip.rgb, WORLD.rgb)
    assert np.abs(clip.cameras.world_from_cam - first @ WORLD.world_from_cam).max() < 1e-6
    assert np.abs(clip.cameras.intrinsics - WORLD.intrinsics).max() < 1e-5
    true = WORLD.points @ first[:3, :3].T + first[:3, 3]
    assert clip.depth.valid.all()
    assert 1000 * np.linalg.norm(clip.pointmap() - true, axis=-1).max() < 0.06
    np.testing.assert_array_equal(clip.motion.instances, WORLD.ids)
    np.testing.assert_array_equal(clip.motion.dynamic, WORLD.dynamic)
    for t in range(3):
        there, _, visible, moved = WORLD.flow(t, t + 1)
        back, _, seen, _ = WORLD.flow(t + 1, t)
        assert np.abs(clip.flow.forward[t] - there)[visible].max() < 1e-3
        assert np.abs(clip.flow.backward[t] - back)[seen].max() < 1e-3
        assert 1000 * np.abs(clip.motion.scene_flow[t] - moved @ first[:3, :3].T)[WORLD.dynamic[t]].max() < 0.02


def test_the_tests_own_writer_writes_what_tensorflow_datasets_does(golden: str) -> None:
    """Names, kinds and numbers; pictures are packed otherwise."""
    shard = golden.rpartition("/")[0]
    found = tfrecord.Example(tfrecord.record(shard, 0), "the golden record")
    for name, values in movi.features(WORLD).items():
        if name.startswith("instances/bboxes"):
            assert name in found
        elif isinstance(values, list):
            assert len(found.pieces(name)) == len(values)
        else:
            of_kind = found.floats if values.dtype.kind == "f" else found.integers
            np.testing.assert_array_equal(of_kind(name), values, err_msg=name)


def test_checksums_are_those_of_rfc_3720() -> None:
    known = {
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        b"": 0,
    }
    assert {data: tfrecord.crc32c(data) for data in known} == known


@pytest.mark.parametrize("more", [-1, 0, 1, (1 << 18) + 5])
def test_many_bytes_at_once_have_the_checksum_that_they_have_one_by_one(more: int) -> None:
    data = np.random.default_rng(0).bytes((1 << 18) + more)
    crc = tfrecord.crc32c(data)
    assert ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32 == movi.masked(data)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_whole_numbers_of_every_size_come_back(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "_DECODED_BYTES", 10 * size)
    values = np.array([0, 1, 127, 128, 300, 16383, 16384, 65535, 2**21, 2**40, 2**63 - 1, -1, -(2**63)])
    found = tfrecord.Example(memoryview(movi.example({"a": values})), "here")
    np.testing.assert_array_equal(found.integers("a"), values)
    with pytest.raises(ValueError, match="here: feature a holds numbers of more than 16 bits"):
        found.uint16s("a")


@pytest.mark.parametrize(
    ("values", "told"),
    [(b"\x08\x01", "a field of wire type 0"), (b"\x0a\x7f", "a field that ends after its message")],
)
def test_a_list_that_is_none_is_refused_by_name(values: bytes, told: str) -> None:
    feature = b"\x0a\x01a\x12" + bytes([len(values) + 2, 0x1A, len(values)]) + values
    data = bytes([0x0A, len(feature) + 2, 0x0A, len(feature)]) + feature
    with pytest.raises(ValueError, match=f"here: feature a holds {told}, expected a list"):
        tfrecord.Example(memoryview(data), "here").integers("a")


def test_every_record_is_a_scene_and_nothing_else_is(tmp_path: Path) -> None:
    shard = movi.write(tmp_path, WORLD, records=3)
    (shard.parent / f"{shard.name}_.gstmp").write_bytes(b"half a download")
    (shard.parent / "instances-category.labels.txt").write_text("Bag\n")
    later = shard.with_name("movi_e-validation.tfrecord-00000-of-00002")
    later.write_bytes(shard.read_bytes()[:-9])
    uris = list(Kubric().scenes(str(tmp_path)))
    assert uris == [f"{file}/{number}" for file in (shard, later) for number in range(3)]
    assert [uri for uri in uris if Kubric(only=("*-train.*",)).takes(str(tmp_path), uri)] == uris[:3]
    assert Kubric().open(uris[4]).frame(0).rgb.shape == (24, 32, 3)
    with pytest.raises(
        ValueError, match=r"validation\.tfrecord-00000-of-00002: record 2 is torn, \d+ of its \d+ bytes"
    ):
        Kubric().open(uris[5])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-2], r"record 1 is torn, \d+ of its \d+ bytes are there"),
        (lambda data: data[: len(data) // 2 + 6], "record 1 is torn, its head has 6 of 12 bytes"),
        (lambda data: data[:-9] + b"?" + data[-8:], "record 1 fails its checksum"),
        (lambda data: data[: len(data) // 2] + b"\1" + data[len(data) // 2 + 1 :], "the length of record 1 fails"),
        (lambda data: data[: len(data) // 2] + movi.record(b"no message"), r"record 1: is no tf\.train\.Example"),
        (lambda data: data[: len(data) // 2], "has no record 1"),
    ],
)
def test_a_damaged_record_is_refused_and_those_before_it_are_not(
    damage: Callable[[bytes], bytes], told: str, tmp_path: Path
) -> None:
    shard = movi.write(tmp_path, WORLD, records=2)
    shard.write_bytes(damage(shard.read_bytes()))
    assert Kubric().open(f"{shard}/0").facts.height == 24
    assert [uri for uri in Kubric().scenes(str(tmp_path)) if uri.endswith("/1")] == (
        [] if told == "has no record 1" else [f"{shard}/1"]
    )
    with pytest.raises(ValueError, match=rf"movi_e-train\.tfrecord-00000-of-00001.*{told}"):
        Kubric().open(f"{shard}/1")


def _without(name: str) -> movi.Change:
    return lambda flat: flat.__delitem__(name)


def _with(name: str, value: movi.Feature) -> movi.Change:
    return lambda flat: flat.update({name: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without("video"), "has no feature video"),
        (_without("depth"), "has no feature depth"),
        (_without("camera/positions"), "has no feature camera/positions"),
        (_without("camera/focal_length"), "has no feature camera/focal_length"),
        (_without("metadata/depth_range"), "has no feature metadata/depth_range"),
        (_without("metadata/forward_flow_range"), "has no feature metadata/forward_flow_range"),
        (_with("depth", np.zeros(3, np.float32)), "feature depth holds float32, expected bytes"),
        (_with("forward_flow", np.zeros(3, np.float32)), "feature forward_flow holds float32, expected int64"),
        (
            _with("forward_flow", np.zeros(9, int)),
            r"forward_flow has 9 values, expected 6144 \(4 pictures of 32 x 24\)",
        ),
        (_with("forward_flow", np.full(6144, 65536)), "forward_flow holds numbers of more than 16 bits"),
        (_with("depth", [b"PNG"] * 3), "depth has 3 values, expected 4"),
        (_with("segmentations", [b"PNG"] * 3), "segmentations has 3 values, expected 4"),
        (_with("camera/quaternions", np.zeros(15, np.float32)), "camera/quaternions has 15 values, expected 16"),
        (_with("camera/quaternions", np.full(16, 2, np.float32)), "a quaternion is not of unit length"),
        (_with("instances/quaternions", np.zeros(15, np.float32)), "instances/quaternions has 15 values, expected 48"),
        (_with("video", [b"no picture"] * 4), "picture 0: not a picture that can be decoded"),
    ],
)
def test_a_record_that_lacks_something_is_refused(change: movi.Change, told: str, tmp_path: Path) -> None:
    shard = movi.write(tmp_path, WORLD, change=change)
    with pytest.raises(ValueError, match=rf"movi_e-train\.tfrecord-00000-of-00001: record 0.*{told}"):
        Kubric().open(f"{shard}/0")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((24, 32, 1), np.uint8), r"depth 0 is uint8 \(24, 32\), expected uint16"),
        (np.zeros((12, 16, 1), np.uint16), r"depth 0 is uint16 \(12, 16\), expected uint16 \(24, 32\)"),
    ],
)
def test_depth_of_other_bits_or_size_is_refused(image: np.ndarray, told: str, tmp_path: Path) -> None:
    shard = movi.write(tmp_path, WORLD, change=_with("depth", [movi.png(image)] * 4))
    with pytest.raises(ValueError, match=f"record 0: {told}"):
        selfcheck.check(Kubric().open(f"{shard}/0"))


def test_a_sky_that_takes_all_16_bits_leaves_no_depth(tmp_path: Path) -> None:
    """Blender's sky is 1e10 m away: what is near would all be at one distance, and a camera that stands finds nothing wrong."""
    shard = movi.write(tmp_path, World(num_frames=2, width=32, height=24, focal=27.0), sky_m=1e10)
    with pytest.raises(ValueError, match=r"its depth of 16 bits reaches from \d.* to 1e\+10 m"):
        Kubric().open(f"{shard}/0").frame(0)


def test_records_without_flow_objects_or_masks_bring_what_they_have(tmp_path: Path) -> None:
    def change(flat: dict[str, movi.Feature]) -> None:
        for name in [name for name in flat if name.startswith(("forward", "backward", "instances", "segmentations"))]:
            del flat[name]

    shard = movi.write(tmp_path, WORLD, change=change)
    scene = Kubric().open(f"{shard}/0")
    assert scene.flow(0, 1) is None
    assert scene.scene_flow(0, 1, scene.frame(0)) is None
    assert scene.frame(3).z.all()
    assert scene.facts.fps == 12
    assert Kubric(fps=24).open(f"{shard}/0").facts.fps == 24


@pytest.mark.parametrize("way", [1, -1])
def test_flow_of_one_direction_needs_no_other(way: int, tmp_path: Path) -> None:
    def change(flat: dict[str, movi.Feature]) -> None:
        missing = "backward" if way == 1 else "forward"
        del flat[f"{missing}_flow"], flat[f"metadata/{missing}_flow_range"]

    scene = Kubric().open(f"{movi.write(tmp_path, WORLD, change=change)}/0")
    there, _, visible, _ = WORLD.flow(1, 1 + way)
    assert np.abs(scene.flow(1, 1 + way).values - there)[visible].max() < 1e-3
    assert scene.flow(1, 1 - way) is None


def test_what_is_not_asked_of_a_record_does_not_stay_in_memory(tmp_path: Path) -> None:
    """The record, with its normals and its flow as 64-bit numbers, is let go."""
    shard = movi.write(tmp_path, WORLD, change=_with("normal", [bytes(1000)] * 4))
    held = kubric_records.Record(f"{shard}/0")
    assert not any(isinstance(value, (memoryview, tfrecord.Example)) for value in vars(held).values())
