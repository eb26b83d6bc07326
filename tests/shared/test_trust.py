"""Gates on pixels: each narrows what its error touches, the selection carries them, and the trainer obeys."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scene

from shared import trust
from shared.clip import AnnotatedClip
from shared.index import SELECTION
from shared.trust import PixelGates


@pytest.fixture(scope="module")
def clip() -> AnnotatedClip:
    return scene.clip("orbit", frames=9, height=96, width=128, focal=120.0)


def test_without_gates_nothing_changes(clip: AnnotatedClip) -> None:
    assert trust.narrowed(clip, PixelGates()) is clip
    assert PixelGates().metadata() == {}
    assert PixelGates.of(None) == PixelGates.of({}) == PixelGates()


def test_depth_that_does_not_explain_its_flow_is_not_trusted(clip: AnnotatedClip) -> None:
    gates = PixelGates(residual_px=1.5)  # depth twice as far is off by 1.9 px here
    kept = trust.narrowed(clip, gates).depth
    assert kept.valid.sum() > 0.99 * clip.depth.valid.sum()  # truth explains it
    z = clip.depth.z.copy()
    z[3, 30:60, 30:60] *= 2
    wrong = trust.narrowed(clip.with_(depth=replace(clip.depth, z=z)), gates).depth
    still = ~clip.motion.dynamic[3, 30:60, 30:60]
    assert wrong.valid[3, 30:60, 30:60][still].mean() < 0.1
    assert (wrong.valid[:3] == kept.valid[:3]).all()
    assert (wrong.z[~wrong.valid] == 0).all()


def test_depth_beside_a_step_is_not_trusted(clip: AnnotatedClip) -> None:
    z = np.ones_like(clip.depth.z)
    z[:, :, 64:] = 2
    flat = clip.with_(depth=replace(clip.depth, z=z, valid=np.ones_like(clip.depth.valid)))
    valid = trust.narrowed(flat, PixelGates(edge_px=5 * 720 / 128)).depth.valid
    assert (~valid).any(axis=(0, 1)).nonzero()[0].tolist() == list(
        range(58, 70)
    )  # 5 px on either side of the step's two


def test_scene_flow_where_flow_is_doubtful_is_not_trusted(clip: AnnotatedClip) -> None:
    assert clip.motion.scene_flow_valid.any()
    backward = clip.flow.backward.copy()
    backward[2] += 9
    doubt = np.zeros(clip.flow.forward.shape[:3], np.float32)
    doubt[5, :48] = 4
    doubtful = clip.with_(flow=replace(clip.flow, backward=backward, uncertainty=doubt))
    valid = trust.narrowed(doubtful, PixelGates(cycle_px=3.0, uncertainty=2.0)).motion.scene_flow_valid
    assert not valid[2].any()
    assert not valid[5, :48].any()
    assert (valid[5, 48:] | ~clip.motion.scene_flow_valid[5, 48:]).mean() > 0.9
    bare = AnnotatedClip(id="bare", rgb=clip.rgb, fps=8.0, source="x", frames=clip.frames)
    assert trust.narrowed(bare, PixelGates(cycle_px=1, edge_px=1, residual_px=1, uncertainty=1)).depth is None


def test_the_trainer_reads_the_gates_from_the_selection(tmp_path: Path) -> None:
    """The same shards, selected with and without gates: only what is valid differs, and a run must not go on under others."""
    from shared import shards
    from train import reader
    from train.recipe import Reading
    from train.stream import Stream

    clip = scene.clip("orbit", frames=9, height=64, width=96, focal=90.0)
    row = shards.index_row(clip)
    shards.write_shard(tmp_path / "shards", "a", [(clip.id, shards.encode(clip, shards.Store()), row)])
    chosen = {name: shards.read_index(tmp_path / "shards").to_pylist()[0].get(name) for name in SELECTION.names}
    chosen |= {"keep": True, "weight": 1.0, "outcome": "pass", "reasons": [], "split": "train", "shard": "shards/a.tar"}
    found = {}
    for name, gates in (("all", PixelGates()), ("edges", PixelGates(edge_px=20.0, residual_px=3.0))):
        schema = SELECTION.with_metadata(gates.metadata())
        pq.write_table(pa.Table.from_pylist([chosen], schema=schema), tmp_path / f"{name}.parquet")
        stream = Stream(tmp_path / f"{name}.parquet")
        assert stream.gates == gates
        loaded = reader.read(stream, str(tmp_path), {"rgb", "depth"}, Reading(), [0])
        assert not loaded.failures
        found[name] = (stream.hash, loaded.batch)
    assert found["all"][0] != found["edges"][0]
    before, after = found["all"][1].depth_valid, found["edges"][1].depth_valid
    assert 0.2 < float(after.sum() / before.sum()) < 0.95
    assert not (after & ~before).any()
