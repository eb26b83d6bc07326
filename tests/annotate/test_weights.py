"""Weights are found where they lie, checked without being read, and asked for in one sentence where they are missing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from annotate import weights
from annotate.depth.geometry_crafter import GeometryCrafter
from annotate.depth.moge import MoGe
from annotate.flow.dis import Dis
from annotate.flow.sea_raft import SeaRaft
from annotate.networks.sea_raft import SeaRAFT
from pipelines import weights as command
from shared.knobs import Knobs
from tests import filling


class Recipe(Knobs):
    flow: Dis | SeaRaft = SeaRaft(variant="S")
    depth: MoGe | GeometryCrafter = MoGe()
    note: str = "no annotator"


class OnlyFlow(Knobs):
    flow: SeaRaft = SeaRaft(variant="S")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLDREEL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def offline(monkeypatch):
    def refused(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)


def official_state() -> dict[str, torch.Tensor]:
    return filling.state(SeaRAFT("S"))


def put(network: weights.Network, state: dict[str, torch.Tensor]) -> Path:
    network.place.parent.mkdir(parents=True)
    save_file({key: tensor for key, tensor in state.items() if ".downsample.1." not in key}, network.place)
    return network.place


def test_a_recipes_networks_are_listed_with_their_terms():
    rows = command.list_rows(Recipe())
    assert [(row["knob"], row["name"], row["path"]) for row in rows] == [
        ("flow", "SEA-RAFT S", None),
        ("depth", "MoGe v1 ViT-L", None),
    ]
    assert rows[0]["licence"] == "BSD-3-Clause"
    assert rows[0]["source"] == "MemorySlices/Tartan-C-T-TSKH432x960-S"
    assert rows[1]["revision"] == "979e84da9415762c30e6c0cf8dc0962896c793df"
    heavy = command.list_rows(Recipe(flow=Dis(), depth=GeometryCrafter()))
    assert len(heavy) == 5
    assert 6000 < sum(row["megabytes"] for row in heavy) < 6800


def test_a_file_put_by_hand_is_found_and_runs(tmp_path):
    annotator = SeaRaft(variant="S")
    path = put(annotator.networks()[0], official_state())
    assert path.is_relative_to(tmp_path / "weights" / "MemorySlices")
    assert command.list_rows(Recipe())[0]["path"] == str(path)
    assert [row["path"] for row in command.check(OnlyFlow())] == [str(path)]
    answer = annotator.load()(np.zeros((2, 121, 121, 3), np.uint8), np.array([[0, 1]]))
    assert np.isfinite(answer.flow).all()


def test_the_authors_own_file_name_is_found_too():
    network = SeaRaft(variant="S").networks()[0]
    network.place.parent.mkdir(parents=True)
    path = network.place.with_name("Tartan-C-T-TSKH432x960-S.pth")
    torch.save(official_state(), path)
    assert weights.find(network) == path
    weights.check(network, path)


def test_the_hubs_cache_is_found_without_a_network(tmp_path, monkeypatch, offline):
    network = MoGe().networks()[0]
    snapshot = tmp_path / "hub" / "models--Ruicheng--moge-vitl" / "snapshots" / str(network.revision)
    snapshot.mkdir(parents=True)
    (snapshot / "model.pt").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert weights.get(network) == snapshot / "model.pt"


def test_missing_weights_are_one_sentence_with_the_command_and_the_place(offline):
    with pytest.raises(ValueError, match="SEA-RAFT S: not on this machine") as refused:
        SeaRaft(variant="S").load()
    sentence = str(refused.value)
    assert "run `worldreel weights fetch`" in sentence
    assert str(SeaRaft(variant="S").networks()[0].place) in sentence
    assert "\n" not in sentence
    with pytest.raises(
        ValueError, match=r"SEA-RAFT S is not on this machine: .*; MoGe v1 ViT-L is not on this machine"
    ):
        command.check(Recipe())


def test_ones_own_file_is_never_looked_for_on_the_hub(offline, tmp_path):
    annotator = SeaRaft(weights=str(tmp_path / "mine.safetensors"))
    with pytest.raises(ValueError, match=r"mine\.safetensors does not exist, expected the weights there"):
        annotator.load()


def test_check_names_what_differs():
    network = SeaRaft(variant="S").networks()[0]
    path = put(network, {key: t for key, t in official_state().items() if key != "flow_head.0.bias"})
    with pytest.raises(ValueError, match=r"model\.safetensors: lacks flow_head\.0\.bias, expected exactly the keys"):
        weights.check(network, path)
    with pytest.raises(ValueError, match="holds SEA-RAFT S, expected weights of M"):
        weights.check(SeaRaft(variant="M").networks()[0], path)
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors: no safetensors"):
        weights.check(network, path)


def test_fetch_downloads_only_what_is_missing(monkeypatch, tmp_path):
    asked = []

    def download(source, file, revision):
        asked.append((source, file, revision))
        path = tmp_path / "downloaded"
        path.write_bytes(b"some")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    path = put(SeaRaft(variant="S").networks()[0], official_state())
    rows = command.fetch(Recipe())
    assert [row["path"] for row in rows] == [str(path), str(tmp_path / "downloaded")]
    assert asked == [("Ruicheng/moge-vitl", "model.pt", "979e84da9415762c30e6c0cf8dc0962896c793df")]


def test_fetch_asks_for_the_licence_before_anything_is_downloaded(offline):
    with pytest.raises(
        ValueError, match=r"academic, research and education use only .* Set depth\.accept_licence=true"
    ):
        command.fetch(Recipe(depth=GeometryCrafter()))
    with pytest.raises(ValueError, match="not on this machine, and the hub did not give it"):
        command.fetch(Recipe(flow=Dis(), depth=GeometryCrafter(accept_licence=True)))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert weights.device_of(0.0) == "cpu"
    with pytest.raises(ValueError, match=r"asks for 0\.5 GPUs, this process sees none"):
        weights.device_of(0.5)


def test_knobs_load_without_torch():
    """A recipe is read and printed by commands that need no network."""
    names = "annotate.flow.sea_raft, annotate.depth.moge, annotate.depth.geometry_crafter, pipelines.weights"
    program = f"import sys, {names}; assert not {{'torch', 'diffusers', 'transformers', 'huggingface_hub'}} & sys.modules.keys()"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
