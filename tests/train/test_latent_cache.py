"""Latents on disk: the same losses to the last bit, and neither pixels nor flow touched for them."""

import shutil
from copy import deepcopy
from dataclasses import replace

import examples
import pytest
import ranks
import scene
import torch
import webdataset

from shared import codecs, files, members
from shared.trust import PixelGates
from train import latent_cache, loop, reader
from train.encoded import together
from train.latent_cache import Known, LatentCache, LatentWriter
from train.latents import encode_batch
from train.log import read
from train.noise import Noise
from train.recipe import Parallel, Reading
from train.size import Size
from train.stages import Decoder, Generator, Joint, SelfSupervised
from train.stream import Stream

SIZE = Size(frames=9, height=32, width=48)


@pytest.fixture
def decoded(monkeypatch):
    """Names of what is decoded."""
    found, plain = [], codecs.decode_rgb
    monkeypatch.setattr(codecs, "decode_rgb", lambda *a: found.append("rgb") or plain(*a))
    pairs = {name: (pair[0], _noted(found, name, pair[1])) for name, pair in members._COMPACT.items()}
    monkeypatch.setattr(members, "_COMPACT", pairs)
    return found


def _noted(found, name, decode):
    return lambda data: found.append(name) or decode(data)


@pytest.fixture
def ranges(monkeypatch):
    """Bytes asked for of each file."""
    found = []
    plain = files.read_up_to
    monkeypatch.setattr(files, "read_up_to", lambda *a: found.append(a) or plain(*a))
    return found


def records(run):
    return [{k: v for k, v in r.items() if k.startswith(("loss", "grad"))} for r in read(run / "metrics.jsonl")]


def train(root, run, cache="", **changes):
    recipe = ranks.recipe(latent_cache=str(cache), **changes)
    assert loop.train(recipe, str(root), str(run)).finished
    return records(run)


def test_all_stages_train_the_same_bits_from_kept_latents(root, tmp_path, decoded):
    """Live, while the cache is filled, and from the cache: losses of every term and lengths of gradients."""
    live = train(root, tmp_path / "live")
    assert train(root, tmp_path / "filling", tmp_path / "cache") == live
    assert {"rgb", "flow.forward"} < set(decoded)
    decoded.clear()
    assert train(root, tmp_path / "kept", tmp_path / "cache") == live
    assert len(live) == 3
    assert not {"rgb", "flow.forward"} & set(decoded)
    assert "motion.dynamic" in decoded  # the decoder's labels are still read


def test_what_one_stage_keeps_serves_the_others(root, tmp_path):
    """The first stage knows no cameras, and so another unit of length; its latents are those of the later stages to the bit."""
    one = [{**phase, "steps": 1} for phase in ranks.BASE.model_dump()["phases"]]
    train(root, tmp_path / "first", tmp_path / "cache", phases=[one[0]])
    kept = sorted(path.name for path in (tmp_path / "cache").glob("*/*.clip"))
    assert len(kept) == 2
    assert train(root, tmp_path / "live", phases=[one[2]]) == train(
        root, tmp_path / "joint", tmp_path / "cache", phases=[one[2]]
    )
    assert sorted(path.name for path in (tmp_path / "cache").glob("*/*.clip")) == kept


def test_a_batch_of_which_only_some_is_kept_is_decoded_whole(root, tmp_path):
    both = {"parallel": Parallel(recompute="none", micro_batch=2), "phases": ranks.generator(4).phases}
    live = train(root, tmp_path / "live", **both)
    assert train(root, tmp_path / "filling", tmp_path / "cache", **both) == live
    for path in sorted((tmp_path / "cache").glob("*/*.clip"))[::2]:
        path.write_bytes(path.read_bytes()[:-3000])  # torn: as good as not there
    assert train(root, tmp_path / "half", tmp_path / "cache", **both) == live
    assert train(root, tmp_path / "kept", tmp_path / "cache", **both) == live


def samples(root, stage, cache, **knobs):
    stream = Stream(root, batch=1, sizes=[SIZE], splits=("train", "validation"))
    wanted = reader.Wanted.of([stage], stream)
    knobs = Reading(workers=0, threads=1, ahead=1, **knobs)
    return reader.Samples(stream, str(root), wanted, knobs, first_step=0, last_step=1, micro_batch=1, latents=cache)


def kept(folder, root, gates="") -> LatentCache:
    """A cache that holds the first sample of `samples`."""
    models = examples.built()
    cache = LatentCache(folder=folder, identity=latent_cache.identity(models.vae, "knobs", gates))
    loaded = samples(root, Generator(), cache)[0]
    writer = LatentWriter(cache, 1.0)
    models.cached(writer).latents(loaded.batch)
    writer.finish()
    return cache


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (Generator(), set()),
        (Decoder(), {"cameras.npz", "depth.wrz", "motion.dynamic.wrz", "motion.key_scene_flow.wrz",
                     "motion.key_scene_flow_valid.wrz"}),
        (SelfSupervised(), {"cameras.npz", "key_flow.forward.wrz", "key_flow.backward.wrz", "motion.dynamic.wrz"}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
def test_only_what_is_needed_beside_latents_is_read(root, tmp_path, ranges, stage, more):
    """Of the first stage: the clip's record, and not a byte else of its shard."""
    cache = kept(tmp_path, root)
    of = samples(root, stage, cache)
    ranges.clear()
    loaded = of[0]
    row = of.stream.row(of.stream[0])
    size_of = {part["name"]: part["size"] for part in row["parts"]}
    read = sum(length for uri, _, length in ranges if uri.endswith(".tar"))
    assert read == sum(size_of[name] for name in more) + (2 if more else 1) * size_of["json"]
    assert loaded.failures == ()
    assert loaded.batch.encoded is not None
    assert loaded.batch.rgb.shape == (1, 1, 32, 48, 3)


def test_the_first_frame_and_the_flags_come_from_the_cache(root, tmp_path):
    live = samples(root, Joint(), None)[0].batch
    found = samples(root, Joint(), kept(tmp_path, root))[0].batch
    assert torch.equal(found.rgb[:, 0], live.rgb[:, 0])
    for name in ("has_depth", "has_flow", "has_cameras", "weight", "points", "key_depth", "dynamic", "scene_flow"):
        assert torch.equal(getattr(found, name), getattr(live, name)), name
    assert found.captions == live.captions


def test_every_change_has_another_name(root, tmp_path):
    models = examples.built()
    cache = LatentCache(folder=tmp_path, identity=latent_cache.identity(models.vae, "knobs", "gates"))
    name = cache.name({"json": b"abc"}, 4, SIZE)
    assert name == cache.name({"json": b"abc"}, 4, SIZE)
    assert name != cache.name({"json": b"abd"}, 4, SIZE)
    assert name != cache.name({"json": b"abc"}, 8, SIZE)
    assert name != cache.name({"json": b"abc"}, 4, Size(frames=9, height=48, width=32))
    identities = {
        latent_cache.identity(vae, knobs, repr(gates))
        for vae in (models.vae, _changed(models.vae), _half(models.vae))
        for knobs in ("a", "b")
        for gates in (PixelGates(), PixelGates(edge_px=2.0))
    }
    assert len(identities) == 12


def _half(vae):
    return deepcopy(vae).bfloat16()


def _changed(vae):
    other = deepcopy(vae)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    return other


def test_half_precision_is_kept_to_the_bit(tmp_path):
    batch, vae = examples.batch("orbit", "lateral"), _half(examples.built().vae)
    encoded = encode_batch(vae, batch, examples.built().knobs.latent)
    assert encoded.rgb_mean.dtype == torch.bfloat16
    writer = LatentWriter(LatentCache(folder=tmp_path, identity="x"), 1.0)
    writer.put(replace(batch, cache_names=("a", "b")), encoded)
    writer.finish()
    found = [known for name in ("a", "b") if (known := writer.cache.read(name))]
    again = together([one.encoded for one in found])
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(encoded).items())
    assert torch.equal(found[1].first, batch.rgb[1, 0])


def test_a_full_folder_takes_no_more_and_keeps_what_it_has(tmp_path):
    batch = examples.batch("orbit")
    encoded = encode_batch(examples.built().vae, batch, examples.built().knobs.latent)
    cache = LatentCache(folder=tmp_path, identity="x")
    one = cache.write(
        "probe",
        "orbit",
        Known(encoded=encoded, first=batch.rgb[0, 0], has_depth=batch.has_depth[0], has_flow=batch.has_flow[0]),
    )
    writer = LatentWriter(cache, 3.5 * one / 2**30)
    for number in range(9):
        writer.put(replace(batch, cache_names=(f"{number}",)), encoded)
        writer.finish()
    assert cache.read("0") is not None
    assert 3 <= len(list(tmp_path.glob("x/*.clip"))) <= 4


def test_a_disk_that_cannot_be_written_does_not_stop_the_run(root, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert train(root, tmp_path / "run", tmp_path / "cache", phases=ranks.generator(2).phases)
    assert "latent_cache takes no more" in caplog.text


def test_a_torn_label_beside_kept_latents_weighs_nothing(root, tmp_path):
    """The sample's latents are there, its labels are not: it keeps its place, with weight 0."""
    cache = kept(tmp_path / "cache", root)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    of = samples(copy, Decoder(), cache)
    row = of.stream.row(of.stream[0])
    depth = next(part for part in row["parts"] if part["name"].startswith("depth"))
    with (copy / row["shard"]).open("r+b") as file:
        file.seek(depth["offset"] + depth["size"] // 2)
        file.write(b"####")
    loaded = of[0]
    assert len(loaded.failures) == 1
    assert loaded.batch.weight.tolist() == [0]
    found = Decoder().loss(examples.built(), loaded.batch, Noise(seed=0, positions=(0,)), torch.ones(()))
    assert found["total"] == 0


def test_foreign_videos_are_kept_too(tmp_path, decoded):
    rgb = scene.clip("orbit", frames=9, height=32, width=48, focal=40.0).rgb
    (tmp_path / "tars").mkdir()
    with webdataset.TarWriter(str(tmp_path / "tars" / "x.tar")) as writer:
        writer.write({"__key__": "one", "mp4": codecs.encode_rgb(rgb, 8.0, 0), "txt": "a room"})
    knobs = {"foreign": True, "phases": ranks.generator(1).phases, "batch": 1}
    live = train(tmp_path / "tars", tmp_path / "live", **knobs)
    assert train(tmp_path / "tars", tmp_path / "filling", tmp_path / "cache", **knobs) == live
    decoded.clear()
    assert train(tmp_path / "tars", tmp_path / "kept", tmp_path / "cache", **knobs) == live
    assert decoded == []
