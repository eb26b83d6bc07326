"""The stream against what counting by hand gives."""

import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.index import SELECTION
from train.mixture import PERIOD, key, permute, shares
from train.size import Size
from train.stream import Stream

SMALL, LONG = Size(frames=9, height=64, width=96), Size(frames=17, height=64, width=64)


def selection(counts: dict[str, int], **columns) -> pa.Table:
    """`counts` clips of each data set; every column may be given as a value or a function of the clip's number."""
    rows = []
    for dataset, count in counts.items():
        for number in range(count):
            row = dict.fromkeys(SELECTION.names) | {
                "clip_id": f"{dataset}{number:05d}", "source": f"{dataset}/{number}.mp4", "dataset": dataset,
                "keep": True, "weight": 1.0, "outcome": "pass", "reasons": [], "split": "train", "num_frames": 9,
                "height": 64, "width": 96, "fps": 8.0, "caption": "", "work_key": f"{number}", "shard": "shards/a.tar",
                "parts": [],
            }  # fmt: skip
            rows.append(row | {name: give(number) if callable(give) else give for name, give in columns.items()})
    return pa.Table.from_pylist(rows, schema=SELECTION)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 4097])
def test_every_index_once(size):
    assert sorted(permute(i, size, key("any")) for i in range(size)) == list(range(size))


def test_the_shuffle_is_even():
    """Over 800 keys, each of 8 indices lands on each of 8 places about 100 times (six sigma: 57)."""
    places = np.zeros((8, 8), int)
    for seed in range(800):
        places[np.arange(8), [permute(i, 8, key(seed)) for i in range(8)]] += 1
    assert np.abs(places - 100).max() < 57


def test_shares_are_kept_at_every_moment():
    table = shares({"a": 0.7, "b": 0.25, "c": 0.05})
    seen = Counter()
    for turn in range(PERIOD + 500):
        name, before = table[turn]
        assert before == seen[name]
        assert table.turn(name, before) == turn
        seen[name] += 1
        for other, share in (("a", 0.7), ("b", 0.25), ("c", 0.05)):
            assert abs(seen[other] - share * (turn + 1)) < 1.5
    assert table.count / PERIOD == pytest.approx([0.7, 0.25, 0.05], abs=1 / PERIOD)


def test_a_tiny_share_still_has_its_turn():
    assert shares({"a": 1.0, "b": 1e-9}).count.tolist() == [PERIOD - 1, 1]


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}, {"a": float("nan")}])
def test_mixtures_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="mixture"):
        shares(weights)


def test_a_pure_function_of_seed_and_position():
    table = selection({"a": 30, "b": 11})
    stream = Stream(table, seed=3, batch=4, sizes=[SMALL])
    draws = {position: stream[position] for position in (500, 0, 7, 10**12)}
    again = Stream(table.take(np.random.default_rng(0).permutation(41)), seed=3, batch=4, sizes=[SMALL])
    shipped = pickle.loads(pickle.dumps(stream))
    for position, draw in draws.items():
        assert stream[position] == again[position] == shipped[position] == draw
        assert stream.row(draw)["clip_id"] == draw.clip_id
    other = Stream(table, seed=4, batch=4, sizes=[SMALL])
    assert [other[i].clip_id for i in range(40)] != [stream[i].clip_id for i in range(40)]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_clip_once_an_epoch_and_no_duplicate_across_ranks(world):
    stream = Stream(selection({"a": 40}), seed=1, batch=8, sizes=[SMALL])
    orders = []
    for epoch in range(3):
        steps = range(epoch * 5, epoch * 5 + 5)
        drawn = [stream[p] for step in steps for rank in range(world) for p in stream.positions(step, rank, world)]
        assert [draw.position for draw in drawn] == list(range(epoch * 40, epoch * 40 + 40))
        assert {draw.epoch for draw in drawn} == {epoch}
        orders.append([draw.clip_id for draw in drawn])
        assert sorted(orders[-1]) == [f"a{i:05d}" for i in range(40)]
    assert orders[0] != orders[1] != orders[2]


def test_the_mixture_decides_how_often_a_data_set_is_seen():
    stream = Stream(selection({"a": 5, "b": 50, "c": 7}), batch=2, sizes=[SMALL], mixture={"a": 3.0, "b": 1.0})
    seen = Counter(stream[position].dataset for position in range(PERIOD))
    assert seen == {"a": 3072, "b": 1024}


def test_a_step_has_one_size_and_overall_shares_stay():
    """A tenth of `a` and all of `b` are long: of 0.75 and 0.25 the long size gets 0.075 + 0.25 of the steps."""
    shape = {"height": 64, "width": lambda i: 64 if i % 10 == 0 else 96, "num_frames": 17}
    a, b = selection({"a": 100}, **shape), selection({"b": 30}, height=64, width=64, num_frames=17)
    stream = Stream(pa.concat_tables([a, b]), batch=2, sizes=[SMALL, LONG], mixture={"a": 0.75, "b": 0.25})
    draws = [stream[position] for position in range(2 * PERIOD)]
    assert all(draw.size == stream.size(draw.step) for draw in draws)
    assert sum(draw.size == LONG for draw in draws) / len(draws) == pytest.approx(0.325, abs=1 / PERIOD)
    assert sum(draw.dataset == "a" for draw in draws) / len(draws) == pytest.approx(0.75, abs=2 / PERIOD)
    epochs = {size: max(d.epoch for d in draws if d.dataset == "a" and d.size == size) for size in (SMALL, LONG)}
    assert abs(epochs[SMALL] - epochs[LONG]) <= 1  # the sizes of a data set end their epochs together
    assert stream.sources() == [("a", LONG), ("a", SMALL), ("b", LONG)]
    for source in stream.sources():
        mine = [draw.position for draw in draws if (draw.dataset, draw.size) == source]
        assert [stream.when(*source, number) for number in (0, 1, 99)] == [mine[0], mine[1], mine[99]]


def test_a_heavy_clip_stands_more_often_in_an_epoch():
    stream = Stream(selection({"a": 6}, weight=lambda i: 1.5 if i == 2 else 0.5), batch=1, sizes=[SMALL])
    seen = Counter(stream[position].clip_id for position in range(8))
    assert seen["a00002"] == 3
    assert sum(seen.values()) == 8
    assert len(seen) == 6


def test_what_curate_left_out_is_never_drawn():
    table = selection(
        {"a": 12}, keep=lambda i: i != 1, weight=lambda i: float(i != 2), split=lambda i: "test" if i == 3 else "train"
    )
    stream = Stream(table, sizes=[SMALL])
    assert {stream[position].clip_id for position in range(100)} == {
        f"a{i:05d}" for i in range(12) if i not in (1, 2, 3)
    }


def test_without_sizes_each_clip_has_its_own():
    shape = {"num_frames": lambda i: 9 + 7 * (i % 2), "height": 100, "width": lambda i: 160 + 10 * (i % 2)}
    stream = Stream(selection({"a": 8}, **shape))
    assert {str(stream[position].size) for position in range(20)} == {"9x96x160"}
    shape["num_frames"] = lambda i: 9 + 8 * (i % 2)
    stream = Stream(selection({"a": 8}, **shape))
    assert {str(stream[position].size) for position in range(20)} == {"9x96x160", "17x96x160"}


def test_clips_too_short_are_counted():
    stream = Stream(selection({"a": 8}, num_frames=lambda i: 5 if i < 3 else 9), sizes=[SMALL])
    assert stream.num_too_short == 3
    assert {stream[position].clip_id for position in range(5)} == {f"a{i:05d}" for i in range(3, 8)}


def test_the_hash_pins_what_is_trained_on():
    table = selection({"a": 12})
    same = Stream(table.slice(6).to_pylist() and pa.concat_tables([table.slice(6), table.slice(0, 6)]), sizes=[SMALL])
    assert same.hash == Stream(table, sizes=[SMALL]).hash
    others = [selection({"a": 13}), selection({"a": 12}, weight=2.0), selection({"a": 12}, work_key="new")]
    assert len({Stream(other, sizes=[SMALL]).hash for other in [table, *others]}) == 4


def test_refusals_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"selection.parquet does not exist: run `worldreel curate .*` first"):
        Stream(tmp_path)
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "selection.parquet")
    with pytest.raises(ValueError, match="no column caption, dataset"):
        Stream(tmp_path)
    with pytest.raises(ValueError, match="no clip to train on; 2 listed, 0 kept"):
        Stream(selection({"a": 2}, keep=False))
    with pytest.raises(ValueError, match="no clip has 49 frames"):
        Stream(selection({"a": 2}), sizes=[Size()])
    with pytest.raises(ValueError, match="no clip has the 9 frames and 16 pixels"):
        Stream(selection({"a": 2}, num_frames=8))
    with pytest.raises(ValueError, match="mixture names z; clips are there of a"):
        Stream(selection({"a": 2}), sizes=[SMALL], mixture={"z": 1.0})
    with pytest.raises(ValueError, match="batch of 6 does not divide among 4 ranks"):
        Stream(selection({"a": 2}), sizes=[SMALL], batch=6).positions(0, 0, 4)
    with pytest.raises(ValueError, match="begins at 0"):
        Stream(selection({"a": 2}), sizes=[SMALL])[-1]


@pytest.mark.parametrize("wrong", [{"frames": 48}, {"width": 360, "height": 240}, {"height": 250}])
def test_sizes_the_model_cannot_take_name_the_nearest_that_it_can(wrong):
    """240 x 360 is the trap: one model returns 44 of its 45 columns without a word."""
    with pytest.raises(ValueError, match=r"expected 8N\+1 frames and sides of 16M, the nearest is \d+x\d+x\d+"):
        Size(**wrong)


def test_a_selection_is_read_from_the_run_folder(tmp_path):
    table = selection({"a": 4})
    pq.write_table(table, tmp_path / "selection.parquet")
    assert Stream(tmp_path, sizes=[SMALL])[3] == Stream(table, sizes=[SMALL])[3]
