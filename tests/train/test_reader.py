"""What the reader hands out, against reading each clip by hand."""

import os
import shutil
import threading
from dataclasses import fields

import pyarrow.parquet as pq
import pytest
import torch

from shared import files, shards
from train import reader
from train.reader import Wanted
from train.recipe import Reading
from train.sample import from_clip
from train.size import Size
from train.stages import Generator, Joint
from train.stream import Stream

SIZE = Size(frames=17, height=48, width=64)
SHORT = Size(frames=9, height=32, width=48)
HERE = Reading(workers=0, threads=2, ahead=1)


LABELS = Joint().parts


ALL = ("train", "validation")


def samples(root, stream, *, parts=LABELS, knobs=HERE, first=0, last=3, micro=1, rank=0, world=1):
    wanted = Wanted(parts=frozenset(parts))
    return reader.Samples(
        stream, str(root), wanted, knobs, first_step=first, last_step=last, micro_batch=micro, rank=rank, world=world
    )


def everything(loaded):
    """(position, id, all tensors) of every sample."""
    found = {}
    for one in loaded:
        for row, position in enumerate(one.positions):
            tensors = [v for f in fields(one.batch) if isinstance(v := getattr(one.batch, f.name), torch.Tensor)]
            found[position] = (one.batch.ids[row], [tensor[row] for tensor in tensors])
    return found


def assert_same(left, right):
    assert left.keys() == right.keys()
    for position, (name, tensors) in left.items():
        assert right[position][0] == name
        assert all(torch.equal(a, b) for a, b in zip(tensors, right[position][1], strict=True))


def test_a_sample_is_its_clip_cut_to_size(root):
    stream = Stream(root, batch=6, sizes=[SIZE], splits=ALL)
    rows = {row["clip_id"]: row for row in pq.read_table(root / "selection.parquet").to_pylist()}
    (loaded,) = reader.batches(samples(root, stream, last=1, micro=6))
    assert sorted(loaded.batch.ids) == sorted(rows)
    for row, name in enumerate(loaded.batch.ids):
        truth = from_clip(shards.read_clip(root, rows[name], Joint().parts), 17, 48, 64)
        assert torch.equal(loaded.batch.points[row], truth.points)
        assert torch.equal(loaded.batch.rgb[row], truth.rgb)
        assert loaded.batch.captions[row] == rows[name]["caption"]


@pytest.mark.parametrize(("world", "micro"), [(2, 1), (4, 1), (2, 2), (1, 2)])
def test_the_global_batch_does_not_depend_on_ranks(root, world, micro):
    """Every rank its own samples; together the ones that a single rank would have had, bit for bit."""
    stream = Stream(root, seed=5, batch=4, sizes=[SHORT], splits=ALL)
    alone = everything(reader.batches(samples(root, stream)))
    ranks = [everything(reader.batches(samples(root, stream, micro=micro, rank=r, world=world))) for r in range(world)]
    assert sum(len(mine) for mine in ranks) == len(alone) == 12
    assert_same({position: sample for mine in ranks for position, sample in mine.items()}, alone)


@pytest.mark.slow
def test_workers_change_nothing_and_no_epoch_is_short(root):
    """Three epochs of six clips through two processes, started in the middle."""
    stream = Stream(root, seed=5, batch=2, sizes=[SHORT], splits=ALL)
    here = everything(reader.batches(samples(root, stream, first=1, last=9)))
    knobs = Reading(workers=2, threads=2, prefetch=2, ahead=2)
    there = everything(reader.batches(samples(root, stream, first=1, last=9, knobs=knobs)))
    assert list(there) == list(range(2, 18))
    assert_same(there, here)


def test_only_what_the_stage_needs_is_read(root, monkeypatch):
    ranges = []
    plain = files.read_up_to
    monkeypatch.setattr(files, "read_up_to", lambda *a: ranges.append(a[1:]) or plain(*a))
    stream = Stream(root, batch=1, sizes=[SIZE], splits=ALL)
    row = stream.row(stream[0])
    size_of = {part["name"]: part["size"] for part in row["parts"]}
    asked = {}
    for parts in (Generator().parts, Joint().parts, {"cameras"}):
        ranges.clear()
        members = reader.Fetcher(str(root), Wanted(parts=frozenset(parts)), HERE)(stream[0], row).members
        asked[len(members)] = sum(length for _, length in ranges)
    assert min(asked) == 2  # cameras and json
    assert asked[2] <= size_of["cameras.npz"] + size_of["json"] + 2 * 1024 < sum(size_of.values()) / 5


@pytest.fixture
def damaged(root, tmp_path):
    """The run, with a byte of one clip's depth changed; and that clip's id."""
    copy = tmp_path / "damaged"
    shutil.copytree(root, copy)
    row = pq.read_table(copy / "selection.parquet").to_pylist()[1]
    depth = next(part for part in row["parts"] if part["name"].startswith("depth"))
    with (copy / row["shard"]).open("r+b") as file:
        file.seek(depth["offset"] + depth["size"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))
    return copy, row["clip_id"]


def test_a_corrupt_sample_keeps_its_place(root, damaged):
    folder, clip_id = damaged
    stream = Stream(folder, seed=5, batch=3, sizes=[SHORT], splits=ALL)
    whole = everything(reader.batches(samples(root, stream, last=4)))
    loaded = list(reader.batches(samples(folder, stream, last=4)))
    failures = [failure for one in loaded for failure in one.failures]
    assert [failure.clip_id for failure in failures] == [clip_id, clip_id]  # twelve draws are two epochs of six
    assert all(folder.name in f.reason or "depth" in f.reason for f in failures)
    assert all("corrupt" in failure.reason for failure in failures)
    bad = {failure.position for failure in failures}
    weights = {one.positions[0]: float(one.batch.weight[0]) for one in loaded}
    assert weights == {position: float(position not in bad) for position in range(12)}
    good = {position: sample for position, sample in everything(loaded).items() if position not in bad}
    assert_same(good, {position: whole[position] for position in good})


def test_a_missing_shard_is_recorded_too(root, tmp_path):
    copy = tmp_path / "torn"
    shutil.copytree(root, copy)
    (copy / "shards" / "a-000000.tar").unlink()
    stream = Stream(copy, batch=6, sizes=[SHORT], splits=ALL)
    (loaded,) = reader.batches(samples(copy, stream, last=1, micro=6))
    assert len(loaded.failures) == 3
    assert float(loaded.batch.weight.sum()) == 3


def test_a_fault_of_the_program_is_not_taken_for_bad_data(root, monkeypatch):
    monkeypatch.setattr(reader, "from_clip", lambda *_, **__: {}["no such thing"])
    with pytest.raises(KeyError, match="no such thing"):
        next(reader.batches(samples(root, Stream(root, batch=1, sizes=[SHORT], splits=ALL))))


def test_a_longer_clip_is_entered_at_its_samples_own_dice(root):
    """17 frames give three windows of 9; all of them are drawn, and the same at every look."""
    stream = Stream(root, seed=1, batch=1, sizes=[SHORT], splits=ALL)
    rows = {row["clip_id"]: row for row in pq.read_table(root / "selection.parquet").to_pylist()}
    starts = []
    for position, (name, tensors) in everything(reader.batches(samples(root, stream, last=18))).items():
        clip = shards.read_clip(root, rows[name], Joint().parts)
        matching = [s for s in (0, 4, 8) if torch.equal(from_clip(clip, 9, 32, 48, start=s).rgb, tensors[0])]
        assert len(matching) == 1, position
        starts.extend(matching)
    assert set(starts) == {0, 4, 8}


def test_what_is_kept_is_the_same_and_read_once(root, monkeypatch):
    stream = Stream(root, batch=2, sizes=[SIZE], splits=ALL)  # clips as long as the size: no dice
    plain = everything(reader.batches(samples(root, stream, last=9)))
    reads: list[str] = []
    read = reader.Fetcher.__call__
    monkeypatch.setattr(
        reader.Fetcher, "__call__", lambda self, draw, row: reads.append(row["clip_id"]) or read(self, draw, row)
    )
    keeping = HERE.model_copy(update={"keep": True})
    assert_same(everything(reader.batches(samples(root, stream, knobs=keeping, last=9))), plain)
    assert len(reads) == len(set(reads)) == stream.table.num_rows
    with pytest.raises(ValueError, match="set workers=0"):
        Reading(keep=True, workers=1)


def test_the_cache_spares_the_shards(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    stream = Stream(copy, batch=6, sizes=[SHORT], splits=ALL)
    knobs = HERE.model_copy(update={"cache": str(tmp_path / "cache")})
    first = everything(reader.batches(samples(copy, stream, last=1, micro=6, knobs=knobs)))
    for path in sorted((tmp_path / "cache").iterdir())[:1]:
        path.write_bytes(path.read_bytes()[:-2000])  # a torn file is read again from its shard
    again = everything(reader.batches(samples(copy, stream, last=1, micro=6, knobs=knobs)))
    for tar in (copy / "shards").glob("*.tar"):
        tar.unlink()
    without = everything(reader.batches(samples(copy, stream, last=1, micro=6, knobs=knobs)))
    assert_same(first, again)
    assert_same(first, without)


def test_the_cache_keeps_to_its_size(tmp_path):
    cache = reader.Cache(tmp_path, 100_000)
    for number in range(30):
        cache.put(f"{number:02d}.clip", "x", {"json": bytes(7000)})
        cache.get("00.clip")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert 70_000 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000
    assert "00.clip" in left  # used last, though written first
    assert "29.clip" in left


def test_bytes_are_fetched_ahead_by_threads(root, monkeypatch):
    """While item 0 is made, items 1 to `ahead` are already asked for, each once, and not by this thread."""
    asked = []
    plain = reader.shards.read_members

    def spy(root, row, parts):
        asked.append((row["clip_id"], threading.current_thread() is threading.main_thread()))
        return plain(root, row, parts)

    monkeypatch.setattr(reader.shards, "read_members", spy)
    stream = Stream(root, batch=1, sizes=[SHORT], splits=ALL)
    dataset = samples(root, stream, last=6, knobs=Reading(workers=0, threads=3, ahead=3))
    dataset[0]
    dataset._pool.shutdown(wait=True)
    assert sorted(asked) == sorted((stream[position].clip_id, False) for position in range(4))


class Dying(reader.Samples):
    def __getitem__(self, item):
        os._exit(9)


@pytest.mark.slow
def test_a_worker_that_dies_is_a_sentence(root):
    stream = Stream(root, batch=1, sizes=[SHORT], splits=ALL)
    knobs = Reading(workers=1, threads=1)
    dying = Dying(stream, str(root), Wanted(parts=LABELS), knobs, first_step=0, last_step=3, micro_batch=1)
    with pytest.raises(ValueError, match="a decoding worker died"):
        next(reader.batches(dying))
