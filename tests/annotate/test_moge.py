"""MoGe v1 against the official program's numbers, its solver against maps of known cameras, and its annotator against a scene."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from annotate.annotator import PairFlow
from annotate.depth import moge as annotator
from annotate.depth.frame_scales import frame_scales
from annotate.depth.moge import Loaded
from annotate.networks import moge
from annotate.networks.moge import MoGe
from shared.clip import AnnotatedClip
from tests import filling, scene

SLOTS = ("depth", "cameras", "flow", "key_flow", "motion")
golden = pytest.mark.skipif(
    not filling.GOLDEN.is_dir(), reason="the official program's arrays are not beside this checkout"
)
TINY = {
    "width": 32,
    "depth": 3,
    "heads": 2,
    "positions": 5,
    "last_blocks": 2,
    "projection": 32,
    "upsampling": (32, 32, 32),
}


@pytest.fixture(scope="module")
def arrays():
    return np.load(filling.GOLDEN / "geometrycrafter.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def tiny() -> MoGe:
    net = MoGe(**TINY)
    state = filling.state(net)
    state["head.output_block.1.2.bias"] += 2
    return net.load_checkpoint(state)


@golden
def test_keys_and_shapes_are_the_official_ones():
    with torch.device("meta"):
        net = MoGe()
    official = json.loads((filling.GOLDEN / "moge_v1_vitl_keys.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in net.state_dict().items()} == official
    assert sum(p.numel() for p in net.parameters()) == 314_174_020
    assert {m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {m.eps for m in net.modules() if isinstance(m, nn.GroupNorm)} == {1e-5}


@golden
@pytest.mark.slow
def test_the_full_network_is_the_official_one(arrays):
    with torch.device("meta"):
        net = MoGe()
    state = filling.state(net) | {"head.output_block.1.2.bias": torch.tensor([2.0])}
    assert filling.checksum(state).startswith("87abc86606d688c3")
    net.load_checkpoint({"model_config": {}, "model": state})
    with torch.inference_mode():
        points, raw_valid = net(torch.from_numpy(arrays["moge_image"]).float() / 255)
    assert np.abs(points.numpy() - arrays["moge_fwd_points"]).max() < 2e-4
    assert np.abs(raw_valid.numpy() - arrays["moge_fwd_mask"]).max() < 2e-4


@golden
def test_the_solver_stops_where_the_official_one_does(arrays):
    points, raw_valid = torch.from_numpy(arrays["moge_fwd_points"]), torch.from_numpy(arrays["moge_fwd_mask"])
    focal, shift = moge.solve(points, raw_valid > moge.VALID)
    assert np.abs(focal.numpy() - arrays["moge_focal"]).max() < 2e-6
    assert np.abs(shift.numpy() - arrays["moge_shift"]).max() < 1e-4


def hill(height: int, width: int) -> torch.Tensor:
    u, v = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    return (3 + u + 0.7 * v + 0.5 * torch.sin(5 * u) * torch.cos(4 * v))[None]


def test_the_solver_finds_a_known_camera():
    focal, shift, (height, width) = 0.8, 0.6, (90, 130)
    points = moge.pinhole(hill(height, width), torch.tensor([focal]), width / height)
    points[..., 2] -= shift
    valid = torch.ones(1, height, width, dtype=torch.bool)
    found_focal, found_shift = moge.solve(points, valid)
    assert abs(found_focal.item() - focal) < 1e-3
    assert abs(found_shift.item() - shift) < 1e-2
    _, with_focal = moge.solve(points, valid, focal)
    assert abs(with_focal.item() - shift) < 1e-3


def test_nothing_valid_is_said_not_solved():
    focal, shift = moge.solve(torch.ones(2, 90, 130, 3), torch.zeros(2, 90, 130, dtype=torch.bool))
    assert focal.isnan().all()
    assert shift.isnan().all()


def test_focal_units_agree():
    """A quarter turn sees as far to the side as ahead; half the width is the focal length then."""
    focal = moge.focal_of_fov(math.pi / 2, aspect=1.5)
    assert moge.focal_px(focal, 100, 150) == pytest.approx(75)


@pytest.mark.parametrize(("size", "level", "batch"), [((61, 83), 0, 2), ((500, 1000), 9, 1)])
def test_infer_answers_at_the_images_size(tiny, size, level, batch):
    """500 x 1000 is where the official program fails: exactly the area it resizes to."""
    out = tiny.infer(filling.noise("image", (batch, 3, *size)).abs(), level=level)
    assert out.points.shape == (batch, *size, 3)
    assert out.valid.dtype == torch.bool
    assert torch.isfinite(out.points).all()


def test_infer_is_a_pinhole_in_its_own_unit(tiny):
    """x/z must be the ray of the pixel under the focal length that was found."""
    out = tiny.infer(filling.noise("image", (1, 3, 120, 150)).abs(), level=0)
    u = moge.uv_grid(120, 150, 150 / 120, out.points)[..., 0]
    inner = (slice(None), slice(4, -4), slice(4, -4))
    flat = out.z[inner].abs() > 0.05
    ray = out.points[..., 0][inner] / out.z[inner]
    off = (ray - (u / out.focal.item())[None][inner]).abs()[flat]
    assert off.median() < 0.02 / abs(out.focal.item())


def test_positions_are_resized_by_factors(tiny):
    backbone = tiny.backbone
    assert torch.equal(backbone._positions(5, 5), backbone.pos_embed)
    grid = backbone.pos_embed[:, 1:].mT.unflatten(2, (5, 5))
    official = F.interpolate(grid, scale_factor=(7.1 / 5, 9.1 / 5), mode="bicubic")
    found = backbone._positions(7, 9)[:, 1:]
    assert torch.allclose(found.mT.unflatten(2, (7, 9)), official)
    assert not torch.allclose(official, F.interpolate(grid, size=(7, 9), mode="bicubic"), atol=1e-4)


def test_bad_images_are_refused(tiny):
    with pytest.raises(ValueError, match="given 10×200 pixels, expected at least 14 a side"):
        tiny(torch.zeros(1, 3, 10, 200))
    image = torch.zeros(1, 3, 28, 28)
    image[0, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        tiny(image)


def test_constant_images_are_finite(tiny):
    points, raw_valid = tiny(torch.full((1, 3, 50, 60), 0.5))
    assert torch.isfinite(points).all()
    assert torch.isfinite(raw_valid).all()


class NoFlow:
    """These clips have theirs."""

    source = "none"

    def __call__(self, rgb, pairs):
        return PairFlow(flow=np.zeros((len(pairs), *rgb.shape[1:3], 2), np.float32))


@pytest.mark.parametrize(
    ("kind", "with_cameras", "allowed"), [("dolly", True, 0.01), ("lateral", True, 0.01), ("lateral", False, 0.02)]
)
def test_frames_come_to_one_unit(kind, with_cameras, allowed):
    clip = scene.clip(kind, frames=9, height=120, width=160, focal=150.0)
    units = np.exp(filling.unit("units", 9) * 0.5)
    z = (clip.depth.z * units[:, None, None]).astype(np.float32)
    scales = frame_scales(z, clip.depth.valid, clip if with_cameras else clip.with_(cameras=None))
    left = np.log(scales * units)
    assert np.abs(left - left.mean()).max() < allowed


def test_one_frame_and_frames_without_depth_keep_their_unit():
    clip = scene.clip("lateral", frames=9, height=120, width=160, focal=150.0)
    assert frame_scales(clip.depth.z[:1], clip.depth.valid[:1], clip).tolist() == [1]
    nothing = np.zeros_like(clip.depth.valid)
    assert frame_scales(clip.depth.z, nothing, clip).tolist() == [1] * 9


class Oracle(nn.Module):
    """In MoGe's place: the scene's true points, each frame in a unit and with a shift of its own, some frames empty."""

    def __init__(self, clip: AnnotatedClip, empty: set[int]) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.zeros(1))
        self.clip, self.empty, self.at = clip, empty, 0

    def maps(self, image, level):
        t, self.at = self.at, self.at + 1
        height, width = self.clip.shape[1:]
        focal = torch.tensor([float(self.clip.cameras.intrinsics[t, 0]) * 2 / math.hypot(height, width)])
        z = torch.from_numpy(self.clip.depth.z[t])[None] * (1 + 0.2 * t)
        points = moge.pinhole(z, focal, width / height)
        points[..., 2] -= 0.3 * (t % 3)
        valid = torch.from_numpy(self.clip.depth.valid[t])[None].float() * (t not in self.empty)
        return points, valid


def test_the_annotator_gives_depth_in_one_unit_and_the_focal_length():
    truth = scene.clip("lateral", frames=9, height=120, width=160, focal=150.0)
    bare = truth.with_(depth=None)
    loaded = Loaded(annotator.MoGe(), Oracle(truth, empty={3}))
    clip = loaded(bare, NoFlow())
    assert not clip.depth.valid[3].any()
    assert clip.depth.z[3].max() == 0
    both = clip.depth.valid & truth.depth.valid
    ratio = np.log(clip.depth.z[both] / truth.depth.z[both])
    assert np.abs(ratio - np.median(ratio)).max() < 0.05
    assert clip.scores["depth_focal_px"] == pytest.approx(150, rel=0.01)
    assert not clip.depth.metric
    assert loaded(clip, NoFlow()) is clip


def test_an_empty_clip_has_no_depth_and_no_focal():
    truth = scene.clip("lateral", frames=9, height=120, width=160, focal=150.0)
    clip = Loaded(annotator.MoGe(), Oracle(truth, empty=set(range(9))))(truth.with_(depth=None), NoFlow())
    assert not clip.depth.valid.any()
    assert "depth_focal_px" not in clip.scores


def test_the_network_runs_behind_the_annotator(tiny):
    truth = scene.clip("lateral", frames=9, height=120, width=160, focal=150.0)
    bare = replace(truth, rgb=truth.rgb[:2], frames=truth.frames[:2], **dict.fromkeys(SLOTS))
    clip = Loaded(annotator.MoGe(level=0, frames_at_once=3), tiny)(bare, NoFlow())
    assert clip.depth.source == "moge-1"
    assert np.isfinite(clip.depth.z).all()


class Tight(nn.Module):
    """A network on a device with room for so many frames at once."""

    def __init__(self, net: nn.Module, room: int) -> None:
        super().__init__()
        self.net, self.room, self.image_mean = net, room, net.image_mean

    def maps(self, image, level):
        if len(image) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net.maps(image, level)


def test_a_device_without_room_for_all_frames_gets_half_as_many(tiny):
    rgb, knobs = scene.clip("lateral", frames=5, height=56, width=84, focal=80.0).rgb, annotator.MoGe(level=0)
    whole, parts = (Loaded(knobs, net)._fitting(rgb) for net in (tiny, Tight(tiny, room=2)))
    assert len(parts) == 5
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.z, other.z, rtol=1e-3, atol=1e-4)
    with pytest.raises(torch.OutOfMemoryError):
        Loaded(knobs, Tight(tiny, room=0))._fitting(rgb)
