"""`worldreel evaluate model` on true clips, with networks of the caller's from files."""

import json
from dataclasses import replace

import pytest
import scene
import torch
from torch import Tensor, nn

from pipelines import model_evaluation, recipes
from pipelines.model_evaluation import Networks
from shared import shards


class _Colors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(2).mean(-1).flatten(1)[:, :3]


@pytest.fixture
def made(tmp_path) -> str:
    for kind in ("orbit", "many_moving"):
        clip = scene.clip(kind, frames=9, height=96, width=128, focal=120.0)
        clip = replace(clip, id=kind)
        shards.write_shard(
            str(tmp_path / "made"), kind, [(kind, shards.encode(clip, shards.Store()), shards.index_row(clip))]
        )
    return str(tmp_path / "made")


@pytest.fixture
def network(tmp_path) -> str:
    path = str(tmp_path / "colors.pt")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(_Colors()), path)
    return path


def test_every_column_of_the_papers_tables(made, network, tmp_path, capsys):
    given = Networks(subject=network, background=network, image_background=network, fid=network, fvd=network, real=made)
    recipe = recipes.annotate_recipe("embedded", [])
    found = model_evaluation.evaluate_model(made, recipe, str(tmp_path / "x.json"), given=given)
    total = found["total"]
    assert {"d.d.", "object d.d.", "i2v-s", "i2v-b", "s.c.", "b.c.", "FVD", "FID"} <= set(total)
    assert abs(total["FVD"]) < 1e-6  # made and real are the same clips
    assert abs(total["FID"]) < 1e-6
    assert set(model_evaluation.GEOMETRY) <= set(total)
    assert 0.2 < total["delta_1.25"] <= 1  # nine small frames tell the annotator little
    assert not any(total[name] for name in model_evaluation.SIGNATURES)
    printed = capsys.readouterr().out
    assert "|method|d.d.|object d.d.|m.s.|i2v-s|i2v-b|s.c.|b.c.|FVD|FID|" in printed
    assert "|method|log_rmse|delta_1.25|ate|rte|rre_deg|length|rotation_deg|" in printed
    assert "FVD: 2 real and 2 made clips of at least 9 frames, covariance with N - 1, weights " in printed
    assert "reference: flow_ba cameras" in printed
    assert json.loads((tmp_path / "x.json").read_text())["total"] == total


def test_distances_ask_for_real_clips(network):
    with pytest.raises(ValueError, match="--real"):
        Networks(fid=network)


def test_nothing_to_judge_is_refused(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(ValueError, match=r"no clip|no shard"):
        model_evaluation.evaluate_model(str(tmp_path), recipes.annotate_recipe("embedded", []))
