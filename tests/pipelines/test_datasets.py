"""Data sets through the same command as videos: every kind end to end, from disk and from a bucket."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from miniatures import bedlam, drawing, dynamic_replica, extras, omniworld, point_odyssey, spatialvid
from miniatures.independent import movi
from miniatures.independent.world import World

from pipelines import annotation, datasets, sources, work
from pipelines.datasets import DATASETS
from pipelines.recipes import AnnotateRecipe
from shared import files, knobs, shards
from shared.clip import AnnotatedClip

WRITERS: dict[str, Callable[[Path], object]] = {
    "pointodyssey": point_odyssey.write,
    "bedlam": bedlam.write,
    "bedlam2": bedlam.write2,
    "dynamic_replica": dynamic_replica.write,
    "omniworld": omniworld.write,
    "spatialvid": spatialvid.write,
    "panda70m": lambda root: spatialvid.panda(root, "0000001_00002"),
    "virtual_kitti2": extras.kitti,
    "spring": extras.spring,
    "sintel": extras.sintel,
    "tartanair": extras.tartanair,
    "tartanair_v2": extras.tartanair_v2,
    "kubric": extras.kubric,
    "realestate10k": extras.realestate10k,
}
FPS = {"omniworld": 24.0, "virtual_kitti2": 10.0, "sintel": 24.0, "kubric": 12.0}


def _recipe(kind: str) -> AnnotateRecipe:
    size = [f"cut.frames={drawing.FRAMES}", "cut.height=48", "cut.width=64", f"cut.fps={FPS.get(kind, 30.0)}"]
    return knobs.load(AnnotateRecipe, AnnotateRecipe(), size)


def test_every_data_set_has_a_miniature() -> None:
    assert set(WRITERS) == {kind for kind in DATASETS if not datasets.is_made(kind)}


@pytest.mark.parametrize("kind", WRITERS)
def test_clips_of_every_kind_survive_a_shard(tmp_path: Path, kind: str) -> None:
    """Cut, loaded and encoded by a worker, then decoded: whatever the data set brought is there, and says from where."""
    WRITERS[kind](tmp_path / "data")
    recipe = _recipe(kind)
    supplier = work.supplier(kind, recipe)
    entry = next(iter(sources.entries(f"{kind}:{tmp_path}/data")))
    spool = str(tmp_path / "a.cut.json")
    supplier.cut({"uri": entry.uri, "dataset": kind, "licence": entry.licence, "caption": ""}, spool)
    clip = supplier.load(spool, 0)
    again = shards.decode(clip.id, shards.encode(clip, recipe.store))
    assert again.shape == (drawing.FRAMES, 48, 64)
    assert again.licence == DATASETS[kind].licence
    brought = [slot for slot in ("depth", "cameras", "motion", "flow") if getattr(again, slot) is not None]
    assert all(getattr(again, slot).source == kind for slot in brought)
    assert bool(brought) == (kind != "panda70m")


def test_a_data_set_goes_through_the_whole_command(tmp_path: Path) -> None:
    point_odyssey.write(tmp_path / "data")
    point_odyssey.write(tmp_path / "data", "gso_in_big")
    out = str(tmp_path / "out")
    summary = annotation.annotate(f"point_odyssey:{tmp_path}/data", out, _recipe("pointodyssey"), inline=True)
    assert (summary.annotated, summary.failed) == (1, 1)
    (clip,) = shards.read_clips(f"{out}/shards")
    true = drawing.true().clip
    assert clip.depth.source == clip.cameras.source == "pointodyssey"
    assert clip.flow.source == "dis", "what the data set lacks, annotators fill"
    np.testing.assert_array_equal(clip.motion.dynamic, true.motion.dynamic)
    assert clip.scores["selfcheck_tracks"] < 0.005
    rows = {row["status"]: row for row in shards.read_index(f"{out}/shards").to_pylist()}
    assert "its tracks are missing" in rows["failed"]["reason"]
    assert rows["annotated"]["dataset"] == "pointodyssey"
    assert rows["annotated"]["metric"]


@pytest.mark.parametrize("kind", ["pointodyssey", "dynamic_replica", "spatialvid", "spring", "realestate10k"])
def test_a_bucket_is_read_as_a_folder_is(tmp_path: Path, bucket: str, kind: str) -> None:
    """Pictures and an npz that is streamed; a gzipped index and torch files; a video and a zip; HDF5; text."""
    WRITERS[kind](tmp_path / "data")
    for path in sorted((tmp_path / "data").rglob("*")):
        if path.is_file():
            files.write_whole(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    loaded: list[AnnotatedClip] = []
    for root in (str(tmp_path / "data"), f"{bucket}/data"):
        entry = next(iter(sources.entries(f"{kind}:{root}")))
        supplier = work.supplier(kind, _recipe(kind))
        supplier.cut({"uri": entry.uri, "dataset": entry.dataset, "licence": "", "caption": ""}, f"{tmp_path}/a.json")
        loaded.append(supplier.load(f"{tmp_path}/a.json", 0))
    here, there = loaded
    np.testing.assert_array_equal(here.rgb, there.rgb)
    np.testing.assert_array_equal(here.cameras.world_from_cam, there.cameras.world_from_cam)
    if kind != "realestate10k":
        np.testing.assert_array_equal(here.depth.z, there.depth.z)
        np.testing.assert_array_equal(here.motion.scene_flow, there.motion.scene_flow)
        np.testing.assert_array_equal(here.motion.dynamic, there.motion.dynamic)


def test_records_in_a_bucket_are_read_as_those_in_a_folder_are(tmp_path: Path, bucket: str) -> None:
    world = World(num_frames=drawing.FRAMES, width=64, height=48, focal=56.0, ceiling=True)
    shard = movi.write(tmp_path / "data", world, records=2)
    files.write_whole(f"{bucket}/{shard.relative_to(tmp_path)}", shard.read_bytes())
    loaded: list[AnnotatedClip] = []
    for root in (str(tmp_path / "data"), f"{bucket}/data"):
        entries = list(sources.entries(f"movi:{root}"))
        assert [entry.uri[-8:] for entry in entries] == ["-00001/0", "-00001/1"]
        supplier = work.supplier("kubric", _recipe("kubric"))
        entry = {"uri": entries[1].uri, "dataset": "kubric", "licence": "", "caption": ""}
        supplier.cut(entry, f"{tmp_path}/a.json")
        loaded.append(supplier.load(f"{tmp_path}/a.json", 0))
    here, there = loaded
    for slot, name in (("depth", "z"), ("motion", "scene_flow"), ("flow", "forward"), ("cameras", "world_from_cam")):
        np.testing.assert_array_equal(getattr(getattr(here, slot), name), getattr(getattr(there, slot), name))
    np.testing.assert_array_equal(here.motion.dynamic, world.dynamic)


def test_all_miniatures_together_are_small(tmp_path: Path) -> None:
    for kind, write in WRITERS.items():
        write(tmp_path / kind)
    sizes = {kind: sum(p.stat().st_size for p in (tmp_path / kind).rglob("*") if p.is_file()) for kind in WRITERS}
    assert min(sizes.values()) > 5_000
    assert sum(sizes.values()) < 2_000_000, sizes


def test_how_a_source_names_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert datasets.split("Point_Odyssey:data") == ("pointodyssey", "data")
    assert datasets.split("vkitti2:s3://b/x") == ("virtual_kitti2", "s3://b/x")
    assert datasets.split("s3://bucket/videos") is None
    assert datasets.split("/data/a:b.mp4") is None
    assert sources.canonical("pointodyssey:data") == f"pointodyssey:{tmp_path}/data"
    with pytest.raises(ValueError, match=r"there is no data set 'odyssey'; `worldreel datasets` lists them"):
        sources.entries("odyssey:/data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no scene of PointOdyssey v1.2, expected \{train,val,test\}"):
        sources.entries("pointodyssey:empty")


def test_the_list_tells_all_that_one_needs(capsys: pytest.CaptureFixture[str]) -> None:
    datasets.show()
    said = capsys.readouterr().out
    for dataset in DATASETS.values():
        assert f"worldreel annotate {dataset.kind}:" in said
        assert dataset.licence in said
        assert dataset.about.layout in said


def test_knobs_of_data_sets_are_plain_values() -> None:
    for dataset in DATASETS.values():
        again = type(dataset).model_validate(json.loads(dataset.model_dump_json()))
        assert again == dataset


def test_knobs_of_a_data_set_choose_scenes_and_are_saved(tmp_path: Path) -> None:
    from miniatures import point_odyssey

    from pipelines import datasets, recipes, sources, work

    for split_, name in (("train", "a"), ("train", "b"), ("val", "a")):
        point_odyssey.write(tmp_path / "po", name, split=split_)
    source = f"pointodyssey:{tmp_path / 'po'}"
    sets = ["source.only=[train]", "source.exclude=[{scenes: [b], why: blurred}]", "source.fps=24"]
    recipe = recipes.annotate_recipe("embedded", sets, source)
    saved = knobs.load(AnnotateRecipe, yaml.safe_load(knobs.dump(recipe)))
    assert saved == recipe
    assert recipes.for_source(saved, source) is saved
    assert [entry.uri[-7:] for entry in sources.entries(source, recipe.source)] == ["train/a", "train/b"]
    scenes = work.supplier("pointodyssey", saved)
    with pytest.raises(ValueError, match=r"train/b: excluded \(b: blurred\)"):
        scenes.cut({"uri": f"{tmp_path}/po/train/b", "dataset": "pointodyssey", "licence": ""}, str(tmp_path / "cut"))
    assert datasets.DATASETS["pointodyssey"].open(f"{tmp_path}/po/train/b")
    nothing = recipes.annotate_recipe("embedded", ["source.only=[test]"], source)
    with pytest.raises(ValueError, match=r"holds no scene of PointOdyssey v1.2 that `only` names \(test\)"):
        sources.entries(source, nothing.source)
    with pytest.raises(ValueError, match="SOURCE names no data set"):
        recipes.annotate_recipe("embedded", ["source.only=[test]"], "videos/")
    with pytest.raises(ValueError, match=r"unknown knob source\.onyl, did you mean source\.only"):
        recipes.annotate_recipe("embedded", ["source.onyl=[test]"], source)
    assert recipes.for_source(recipe, "videos/").source is None


def test_the_knobs_of_one_data_set_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import datasets

    datasets.show("BEDLAM")
    told = capsys.readouterr().out
    for name in ("only", "exclude", "exclude_list", "edge_px", "max_range_m", "fps"):
        assert f"--set source.{name}=" in told
    with pytest.raises(ValueError, match="there is no data set"):
        datasets.show("nosuch")
