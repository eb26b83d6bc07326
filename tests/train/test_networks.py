"""The caller's networks, from files in the layouts in which the published ones come."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train import networks


class _Mean(nn.Module):
    """Stands for any TorchScript file."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((-1, -2))


class _Middle(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) / 2


class _Published(nn.Module):
    """The signature of the published I3D."""

    def forward(self, x: Tensor, return_features: bool = False, rescale: bool = True, resize: bool = True) -> Tensor:
        if not return_features or rescale or resize:
            raise RuntimeError("wrong switches")
        return torch.stack([x.amin(), x.amax(), torch.tensor(float(x.shape[2]))])[None]


@pytest.fixture
def saved(tmp_path):
    def _save(module: nn.Module) -> str:
        path = str(tmp_path / f"{type(module).__name__}.pt")
        with pytest.warns(DeprecationWarning, match="deprecated"):
            torch.jit.save(torch.jit.script(module), path)
        return path

    return _save


def _rgb(frames: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8)


def test_a_folder_of_transformers_is_a_backbone(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    network = ViTModel(config, add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    rgb = np.full((2, 32, 32, 3), 51, np.uint8)
    found = networks.backbone(str(tmp_path))(rgb)
    with torch.no_grad():
        expected = network(pixel_values=torch.full((2, 3, 32, 32), 0.2)).last_hidden_state[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_of_clip_the_image_embedding_is_taken(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "vocab_size": 64, "max_position_embeddings": 8},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    assert networks.backbone(str(tmp_path))(_rgb()).shape == (5, 12)


def test_torchscript_files_see_what_their_task_defines(saved):
    rgb = _rgb()
    assert networks.backbone(saved(_Mean()))(rgb).shape == (5, 3)
    whole = torch.tensor(rgb).double().mean((1, 2))
    assert torch.allclose(networks.frame_features(saved(_Mean()))(rgb), whole, atol=1e-3)
    middle = networks.interpolator(saved(_Middle()))(rgb)
    assert np.abs(middle.astype(int) - (rgb[:-1].astype(int) + rgb[1:]) / 2).max() <= 1
    low, high, frames = networks.video_features(saved(_Published()))(rgb)[0].tolist()
    assert -1 <= low < high <= 1
    assert frames == 5


def test_weights_are_told_by_their_hash(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("again/a", b"1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first, second, again = (networks.weight_hash(str(tmp_path / name)) for name in ("a", "b", "again/a"))
    assert first == again != second


def test_what_is_no_network_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.pt: not a TorchScript"):
        networks.backbone(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="no such file"):
        networks.frame_features(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a model of transformers"):
        networks.backbone(str(tmp_path))
