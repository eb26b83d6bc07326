"""Shards come back as they went in, are the same bytes every time, and say in one sentence what is wrong with them."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from shared import files, shards
from shared.clip import AnnotatedClip, Points
from shared.index import INDEX

GOLDEN = Path(__file__).parents[1] / "golden"
COMPACT, PLAIN = shards.Store(), shards.Store(codec="plain")
SLOTS = ("depth", "points", "cameras", "flow", "key_flow", "motion", "tracks")

MakeClip = Callable[..., AnnotatedClip]


def item(clip: AnnotatedClip, store: shards.Store = COMPACT) -> tuple[str, dict[str, bytes], dict[str, Any]]:
    return clip.id, shards.encode(clip, store), shards.index_row(clip)


def arrays(part: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(part).items() if isinstance(value, np.ndarray)}


def assert_equal(found: AnnotatedClip, clip: AnnotatedClip, exact: bool) -> None:
    for name in ("id", "fps", "source", "caption", "licence", "scores", "shape"):
        assert getattr(found, name) == getattr(clip, name), name
    assert (found.frames == clip.frames).all()
    assert (found.rgb == clip.rgb).all() or not exact
    for slot in SLOTS:
        part, expected = getattr(found, slot), getattr(clip, slot)
        assert (part is None) == (expected is None), slot
        if part is None:
            continue
        for field in dataclasses.fields(part):
            value, wanted = getattr(part, field.name), getattr(expected, field.name)
            if not isinstance(wanted, np.ndarray):
                assert value == wanted, f"{slot}.{field.name}"
            else:
                assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), f"{slot}.{field.name}"
                np.testing.assert_allclose(value, wanted, rtol=0 if exact else 5.1e-3, atol=0 if exact else 1 / 128)


@pytest.mark.parametrize("store", [COMPACT, PLAIN])
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9])
def test_a_clip_comes_back(make_clip: MakeClip, store: shards.Store, frames: int) -> None:
    clip = make_clip(frames=frames, height=15, width=21)
    assert_equal(shards.decode(clip.id, shards.encode(clip, store)), clip, exact=store is PLAIN)


@pytest.mark.parametrize("store", [COMPACT, PLAIN])
@pytest.mark.parametrize("slot", SLOTS)
def test_any_slot_may_be_empty(make_clip: MakeClip, store: shards.Store, slot: str) -> None:
    clip = dataclasses.replace(make_clip(), **{slot: None})
    assert_equal(shards.decode(clip.id, shards.encode(clip, store)), clip, exact=store is PLAIN)
    bare = dataclasses.replace(clip, **dict.fromkeys(SLOTS))
    assert list(shards.encode(bare, store)) == ["json", "rgb.mp4"]
    assert_equal(shards.decode(bare.id, shards.encode(bare, store)), bare, exact=store is PLAIN)


def test_points_of_their_own_are_kept_and_dense_ones_are_derived(make_clip: MakeClip) -> None:
    clip = make_clip()
    dense = shards.decode(clip.id, shards.encode(clip, shards.Store(codec="plain", pointmaps="dense")))
    assert dense.points is not None
    np.testing.assert_allclose(dense.pointmap(), clip.pointmap(), atol=1e-5)
    bent = Points(p_cam=dense.points.p_cam + 1, valid=dense.points.valid, metric=True, source="fisheye")
    assert_equal(
        shards.decode(clip.id, shards.encode(clip.with_(points=bent), PLAIN)), clip.with_(points=bent), exact=True
    )


def test_what_is_invalid_is_stored_as_zero(make_clip: MakeClip) -> None:
    clip = make_clip()
    assert clip.depth is not None
    dirty = dataclasses.replace(clip.depth, z=np.where(clip.depth.valid, clip.depth.z, np.float32(-5)))
    found = shards.decode(clip.id, shards.encode(clip.with_(depth=dirty), COMPACT)).depth
    assert found is not None
    assert (found.valid == clip.depth.valid).all()
    assert (found.z[~found.valid] == 0).all()


def test_what_does_not_fit_names_clip_and_member(make_clip: MakeClip) -> None:
    clip = make_clip()
    assert clip.flow is not None
    far = dataclasses.replace(clip.flow, backward=clip.flow.backward + 5000)
    with pytest.raises(ValueError, match=r"^a1b2c3d4: flow.backward: reaches 50\d\d\.?\d* px, expected at most 1023"):
        shards.encode(clip.with_(flow=far), COMPACT)
    with pytest.raises(ValueError, match=r"a1b2c3d4: {'bad': nan} is not finite"):
        shards.encode(clip.with_(scores={"bad": float("nan")}), COMPACT)


def test_only_what_is_asked_for_is_read(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip()
    shards.write_shard(tmp_path, "s-000000", [item(clip, PLAIN)])
    (row,) = shards.read_index(tmp_path).to_pylist()
    reads: list[tuple[int, int]] = []
    read = files.read_up_to
    monkeypatch.setattr(files, "read_up_to", lambda uri, at, n: reads.append((at, n)) or read(uri, at, n))
    monkeypatch.setattr(shards, "LOCAL_GAP_BYTES", 0)
    found = shards.read_clip(tmp_path, row, ["motion.dynamic", "depth"])
    sizes = {part["name"]: part["size"] for part in row["parts"]}
    padded = sum(-(-sizes[name] // 512) * 512 + 512 for name in ("json", "depth.npy", "motion.dynamic.npy"))
    assert sum(n for _, n in reads) <= padded
    assert found.motion is not None
    assert clip.motion is not None
    assert (found.motion.dynamic == clip.motion.dynamic).all()
    assert not found.motion.scene_flow_valid.any()
    assert found.flow is None
    assert found.shape == clip.shape
    assert not found.rgb.any()


def test_what_a_stage_needs_is_one_range(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip(), PLAIN)])
    (row,) = shards.read_index(tmp_path).to_pylist()
    reads: list[int] = []
    read = files.read_up_to
    monkeypatch.setattr(files, "read_up_to", lambda uri, at, n: reads.append(n) or read(uri, at, n))
    monkeypatch.setattr(shards, "LOCAL_GAP_BYTES", 512 + 511)  # a header and the padding before it
    for parts in (
        ("rgb", "flow.forward", "depth", "cameras"),
        ("rgb", "flow.forward", "depth", "cameras", "motion.dynamic", "motion.key_scene_flow"),
        None,
    ):
        reads.clear()
        shards.read_members(tmp_path, row, parts)
        assert len(reads) == 1, parts


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_clips_make_the_same_bytes(make_clip: MakeClip, tmp_path: Path) -> None:
    code = (
        "import sys, runpy; from shared import shards;"
        f"golden = runpy.run_path({str(GOLDEN / 'make.py')!r});"
        "shards.write_shard(sys.argv[1], 'golden-000000', golden['items']())"
    )
    for folder in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / folder)], check=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    shuffled = [(i, dict(reversed(m.items())), dict(reversed(r.items()))) for i, m, r in [item(make_clip())]]
    shards.write_shard(tmp_path / "c", "s", shuffled)
    shards.write_shard(tmp_path / "d", "s", [item(make_clip())])
    assert digests(tmp_path / "c") == digests(tmp_path / "d")


def test_the_tar_is_ustar_and_says_nothing_of_its_making(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip("b0")), item(make_clip("a0"), PLAIN)])
    with tarfile.open(tmp_path / "s-000000.tar") as tar:
        members = tar.getmembers()
    for info in members:
        assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
        assert (info.uname, info.gname, info.pax_headers) == ("", "", {})
    assert (tmp_path / "s-000000.tar").read_bytes()[257:265] == b"ustar\x0000"
    assert [info.name for info in members if info.name.endswith(".json")] == ["b0.json", "a0.json"]


def test_webdataset_alone_iterates_them(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip("b0")), item(make_clip("a0"))])
    code = (
        "import sys, webdataset, json\n"
        "found = [(s['__key__'], sorted(k for k in s if k[0] != '_'), json.loads(s['json'])['caption'])"
        " for s in webdataset.WebDataset(sys.argv[1], shardshuffle=False)]\n"
        "assert not {'shared', 'torch.distributed.run'} & set(sys.modules)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s-000000.tar")], check=True, capture_output=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    expected = sorted(shards.encode(make_clip("b0"), COMPACT))
    assert found == [["b0", expected, "A disc passes by."], ["a0", expected, "A disc passes by."]]


def test_the_index_has_all_columns_and_all_clips(make_clip: MakeClip, tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "decode: damaged at frame 9", "source": "s3://b/v.mp4", "score.blur": 2.0}
    shards.write_shard(tmp_path / "shards", "s-000000", [item(make_clip()), ("f00", {}, failed)])
    shards.write_shard(tmp_path / "shards", "s-000001", [item(make_clip("b0"))])
    table = shards.read_index(tmp_path)
    assert table.schema.names[: len(INDEX)] == INDEX.names
    assert table.column("clip_id").to_pylist() == ["a1b2c3d4", "f00", "b0"]
    assert table.column("score.blur").to_pylist() == [None, 2.0, None]
    good, bad, _ = table.to_pylist()
    assert (bad["status"], bad["reason"], bad["parts"]) == ("failed", "decode: damaged at frame 9", [])
    assert dict(good["annotators"])["depth"] == "formula"
    assert (good["first_frame"], good["last_frame"], good["num_frames"]) == (10, 34, 9)
    assert [clip.id for clip in shards.read_clips(tmp_path)] == ["a1b2c3d4", "b0"]
    assert [clip.id for clip in shards.read_clips(tmp_path / "shards" / "s-000001.tar")] == ["b0"]
    with pytest.raises(ValueError, match="f00: has no members, its status is failed"):
        shards.read_clip(tmp_path / "shards", bad)


def test_an_index_from_before_a_column_was_added_is_read(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip())])
    index = tmp_path / "s-000000.parquet"
    parquet.write_table(parquet.read_table(index).drop_columns(["licence", "degenerate"]), index)
    table = shards.read_index(tmp_path)
    assert table.schema.names[: len(INDEX)] == INDEX.names
    assert table.column("licence").to_pylist() == [None]


def test_a_selection_row_is_read_from_the_run(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path / "shards", "s-000000", [item(make_clip())])
    (row,) = shards.read_index(tmp_path).to_pylist()
    selected = {"clip_id": row["clip_id"], "shard": "shards/" + row["shard"], "parts": row["parts"]}
    assert shards.read_clip(tmp_path, selected).id == "a1b2c3d4"


def test_a_tar_without_index_does_not_exist(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip())])
    shards.write_shard(tmp_path, "s-000001", [item(make_clip("b0"))])
    assert shards.is_committed(tmp_path, "s-000000")
    (tmp_path / "s-000000.parquet").unlink()
    assert not shards.is_committed(tmp_path, "s-000000")
    assert [clip.id for clip in shards.read_clips(tmp_path)] == ["b0"]
    with pytest.raises(ValueError, match=r"s-000000.tar: not committed: it has no index s-000000.parquet"):
        list(shards.read_clips(tmp_path / "s-000000.tar"))


def test_a_failing_write_leaves_nothing(make_clip: MakeClip, tmp_path: Path) -> None:
    good = item(make_clip())

    def items():
        yield good
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        shards.write_shard(tmp_path, "s-000000", items())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="clip id 'a1b2c3d4' is there twice"):
        shards.write_shard(tmp_path, "s-000000", [good, good])
    with pytest.raises(ValueError, match="unknown index columns colour"):
        shards.write_shard(tmp_path, "s-000000", [(good[0], good[1], {"colour": 1})])
    with pytest.raises(ValueError, match="index column height"):
        shards.write_shard(tmp_path, "s-000000", [(good[0], good[1], {"height": "tall"})])
    assert not shards.is_committed(tmp_path, "s-000000")


def test_a_newer_format_is_refused_in_one_sentence(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip()
    shards.write_shard(tmp_path, "s-000000", [item(clip)])
    index = tmp_path / "s-000000.parquet"
    schema = parquet.read_schema(index)
    table = parquet.read_table(index)
    parquet.write_table(table.replace_schema_metadata({**schema.metadata, b"worldreel.format": b"7"}), index)
    with pytest.raises(ValueError, match=r"s-000000.parquet: written in format 7, this worldreel reads up to 1"):
        shards.read_index(tmp_path)
    with pytest.raises(ValueError, match="written in format 7"):
        next(shards.read_clips(tmp_path))
    members = shards.encode(clip, COMPACT)
    facts = shards.unseal(members["json"]) | {"format": 7}
    with pytest.raises(ValueError, match="clip a1b2c3d4: written in format 7, this worldreel reads up to 1: update it"):
        shards.decode(clip.id, members | {"json": shards.seal(facts)})


def test_every_damaged_member_is_named(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip())])
    tar = tmp_path / "s-000000.tar"
    (row,) = shards.read_index(tmp_path).to_pylist()
    whole = tar.read_bytes()
    shards.verify(tmp_path, "s-000000")
    for part in row["parts"]:
        damaged = bytearray(whole)
        damaged[part["offset"] + part["size"] // 2] ^= 1
        tar.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"s-000000.tar: clip a1b2c3d4: {part['name']} is .*corrupt"):
            shards.read_clip(tmp_path, row)
        with pytest.raises(ValueError, match="its sha256 is not the one in its index"):
            shards.verify(tmp_path, "s-000000")
        tar.write_bytes(whole[: part["offset"] + part["size"] // 2])
        with pytest.raises(ValueError, match=rf"s-000000.tar: clip a1b2c3d4: {part['name']} is torn"):
            shards.read_clip(tmp_path, row)
        assert not shards.is_committed(tmp_path, "s-000000")
    tar.unlink()
    with pytest.raises(ValueError, match=r"s-000000.tar: no such file"):
        shards.read_clip(tmp_path, row)


def test_an_index_of_another_tar_is_noticed(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s-000000", [item(make_clip())])
    (row,) = shards.read_index(tmp_path).to_pylist()
    shards.write_shard(tmp_path, "s-000000", [item(make_clip("b1b2c3d4"))])
    with pytest.raises(ValueError, match=r"s-000000.tar: clip a1b2c3d4: its json is of clip b1b2c3d4"):
        shards.read_clip(tmp_path, row)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1"])
def test_a_broken_index_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s-000000.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"s-000000.parquet: a torn or corrupt index"):
        shards.read_index(tmp_path)
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "s-000000.parquet")
    with pytest.raises(ValueError, match=r"s-000000.parquet: no index of a shard"):
        shards.read_index(tmp_path)


def test_only_the_folder_itself_is_looked_at(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path / "old", "s-000000", [item(make_clip("b0"))])
    shards.write_shard(tmp_path, "s-000000", [item(make_clip())])
    for folder in (tmp_path, tmp_path.as_uri(), f"{tmp_path}/", str(tmp_path / "s-000000.tar")):
        assert [clip.id for clip in shards.read_clips(folder)] == ["a1b2c3d4"]


def test_no_folder_and_no_shards(tmp_path: Path) -> None:
    assert shards.read_index(tmp_path).schema == INDEX
    assert list(shards.read_clips(tmp_path)) == []
    with pytest.raises(ValueError, match="nowhere: no such folder of shards"):
        shards.read_index(tmp_path / "nowhere")
    shards.write_shard(tmp_path, "s-000000", [])
    assert shards.read_index(tmp_path).num_rows == 0


def test_foreign_tars_are_indexed_by_their_headers(make_clip: MakeClip, tmp_path: Path) -> None:
    members = {"a/one.jpg": b"j" * 700, "a/one.seg.png": b"p", "a/two.jpg": b"", "three.cls": b"5"}
    with tarfile.open(tmp_path / "foreign.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            (tmp_path / "member").write_bytes(data)
            tar.add(tmp_path / "member", name)
    rows = shards.index_foreign(tmp_path / "foreign.tar")
    assert [row["clip_id"] for row in rows] == ["a/one", "a/two", "three"]
    assert [part["name"] for part in rows[0]["parts"]] == ["jpg", "seg.png"]
    found = {f"{r['clip_id']}.{s}": d for r in rows for s, d in shards.read_members(tmp_path, r).items()}
    assert found == members
    shards.write_shard(tmp_path, "ours", [item(make_clip("b0")), item(make_clip("a0"))])
    index = shards.read_index(tmp_path / "ours.tar")
    assert [row["parts"] for row in shards.index_foreign(tmp_path / "ours.tar")] == index.column("parts").to_pylist()


def test_a_torn_foreign_tar_is_refused(make_clip: MakeClip, tmp_path: Path) -> None:
    shards.write_shard(tmp_path, "s", [item(make_clip("b0")), item(make_clip("a0"))])
    whole = (tmp_path / "s.tar").read_bytes()
    second = [row["parts"][0]["offset"] for row in shards.read_index(tmp_path).to_pylist()][1] - 512
    smashed = bytearray(whole)
    smashed[second : second + 512] = b"\xff" * 512
    for content, why in (
        (whole[: second + 600], "is torn: the tar ends within it"),
        (whole[: second + 100], "no whole tar|corrupt"),
        (bytes(smashed), f"corrupt: no tar header at byte {second}"),
        (b"not a tar at all" * 100, "no whole tar"),
    ):
        (tmp_path / "t.tar").write_bytes(content)
        with pytest.raises(ValueError, match=why):
            shards.index_foreign(tmp_path / "t.tar")


def test_an_artifact_comes_back_whole(make_clip: MakeClip, tmp_path: Path) -> None:
    clip_id, members, row = item(make_clip())
    shards.write_artifact(tmp_path / "spool" / "a1b2c3d4.tar", clip_id, members, row)
    assert shards.read_artifact(tmp_path / "spool" / "a1b2c3d4.tar") == (clip_id, members, row)
    with pytest.raises(ValueError, match=r"x: {'score.a': nan} is not finite"):
        shards.write_artifact(tmp_path / "bad", "x", {}, {"score.a": float("nan")})
    shards.write_artifact(tmp_path / "bad", "f00", {}, {"status": "failed", "reason": "café"})
    assert shards.read_artifact(tmp_path / "bad") == ("f00", {}, {"status": "failed", "reason": "café"})


def test_a_torn_artifact_is_detected(make_clip: MakeClip, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    shards.write_artifact(path, *item(make_clip()))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        spans = [(info.offset_data, info.size) for info in tar]
    for offset, size in spans:
        damaged = bytearray(whole)
        damaged[offset + size // 2] ^= 4
        for content in (whole[: offset + size // 2], whole[: offset - 512], bytes(damaged)):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"a\.tar: "):
                shards.read_artifact(path)
    with pytest.raises(ValueError, match="no such file"):
        shards.read_artifact(tmp_path / "missing.tar")


def test_the_golden_shard_is_readable_for_ever(golden: dict) -> None:
    compact, plain = shards.read_clips(GOLDEN)
    expected, exact = (
        golden["clip"](frames=5, height=20, width=24),
        golden["clip"]("e5f6a7b8", frames=5, height=7, width=5),
    )
    assert compact.points is not None
    np.testing.assert_allclose(compact.pointmap(), expected.pointmap(), rtol=2e-3, atol=2e-3)
    assert_equal(dataclasses.replace(compact, points=None), expected, exact=False)
    assert_equal(plain, exact.with_(key_flow=None), exact=True)
    shards.verify(GOLDEN, golden["NAME"])
    rows = shards.read_index(GOLDEN).to_pylist()
    assert [(row["clip_id"], row["status"], row["reason"]) for row in rows][1] == ("c9d0", "screened", "too dark")
    assert sum(path.stat().st_size for path in GOLDEN.glob("golden-*")) < 62_000
