"""Tars that another tool wrote: here webdataset's own writer."""

import numpy as np
import pytest
import ranks
import scene
import webdataset

from shared import codecs
from train import foreign, loop, reader
from train.log import read
from train.stages import Generator
from train.stream import Stream


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three videos with captions in two tars, one of them no video, and a sample that only has a picture."""
    folder = tmp_path_factory.mktemp("foreign")
    rgb = scene.clip("orbit", frames=9, height=32, width=48, focal=40.0).rgb
    for number, names in enumerate((("one", "two"), ("three", "picture"))):
        with webdataset.TarWriter(str(folder / f"other-{number}.tar")) as writer:
            for name in names:
                video = {"mp4": codecs.encode_rgb(rgb, 8.0, 0), "txt": f"this is {name}\n"}
                writer.write({"__key__": name} | ({"jpg": b"not read"} if name == "picture" else video))
    return folder, rgb


def test_videos_and_captions_become_samples(tars):
    folder, rgb = tars
    table = foreign.selection(str(folder))
    assert sorted(zip(table["clip_id"].to_pylist(), table["num_frames"].to_pylist())) == [
        ("one", 9),
        ("three", 9),
        ("two", 9),
    ]
    stream = Stream(table, batch=3, sizes=ranks.BASE.sizes)
    loaded = reader.read(stream, str(folder), Generator().parts, ranks.BASE.reading, range(3))
    assert loaded.failures == ()
    assert sorted(loaded.batch.captions) == ["this is one", "this is three", "this is two"]
    assert not loaded.batch.has_depth.any()
    found = loaded.batch.rgb[0].numpy().astype(float)
    assert np.abs(found - rgb).max() < 8  # 4:2:0 colors, otherwise exact


def test_the_generators_rgb_half_trains_on_them(tars, tmp_path):
    folder, _ = tars
    assert loop.train(ranks.generator(1, foreign=True), str(folder), str(tmp_path)).finished
    (record,) = read(tmp_path / "metrics.jsonl")
    assert record["loss.diffusion_rgb"] > 0
    assert record["loss.diffusion_geometry"] == 0


def test_tars_without_videos_are_refused(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": "a", "txt": "only words"})
    with pytest.raises(ValueError, match="no tar there holds a video"):
        foreign.selection(str(tmp_path))


def test_a_broken_video_is_not_kept(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": "a", "mp4": b"no video at all"})
    assert foreign.selection(str(tmp_path))["keep"].to_pylist() == [False]
