"""SEA-RAFT against the official program's numbers, and against itself where sharing must not change them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from annotate.annotator import FlowModel
from annotate.flow.sea_raft import SeaRaft
from annotate.networks import sea_raft
from annotate.networks.sea_raft import Correlation, SeaRAFT, last, smallest_scale, uncertainty
from annotate.networks.sea_raft_video import VideoFlow
from tests import filling

golden = pytest.mark.skipif(
    not filling.GOLDEN.is_dir(), reason="the official program's arrays are not beside this checkout"
)


@pytest.fixture(scope="module")
def net() -> SeaRAFT:
    return filled("S")


def filled(variant: str, **settings: int) -> SeaRAFT:
    net = SeaRAFT(variant, **settings)
    return net.load_checkpoint(filling.state(net, 1.0 if variant == "S" else 0.8))


def texture(frames: int, height: int = 128, width: int = 136) -> Tensor:
    """Noise that moves by (2, 1) pixels a frame, 0..255."""
    coarse = filling.noise("texture", (1, 3, (height + frames) // 4, (width + 2 * frames) // 4))
    full = F.interpolate(coarse, size=(height + frames, width + 2 * frames), mode="bicubic")
    full = (full * 80 + 128).clamp(0, 255)
    return torch.cat([full[..., t : t + height, 2 * t : 2 * t + width] for t in range(frames)])


@golden
@pytest.mark.parametrize(("variant", "checksum"), [("S", "349b073e76cf30d2"), ("M", "4209f586cdda1e4e")])
def test_keys_and_shapes_are_the_official_ones(variant, checksum):
    net = SeaRAFT(variant)
    official = json.loads((filling.GOLDEN / f"searaft_keys_{variant}.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in net.state_dict().items()} == official
    assert filling.checksum(filling.state(net, 1.0 if variant == "S" else 0.8)).startswith(checksum)


@golden
def test_every_prediction_is_the_official_one(net):
    arrays = np.load(filling.GOLDEN / "searaft.npz", allow_pickle=False)
    image1, image2 = (torch.from_numpy(arrays[name]) for name in ("A_image1", "A_image2"))
    with torch.inference_mode():
        predictions = net.predictions(image1, image2)
        flow, info = net(image1, image2)
    for (found, _), official in zip(predictions, arrays["A_flows"], strict=True):
        assert off(found[0], official) < 5e-5
    assert torch.equal(flow, predictions[-1][0])
    assert off(predictions[0][1], arrays["A_info_first"]) < 5e-6
    assert off(info, arrays["A_info_last"]) < 5e-6
    assert off(uncertainty(info)[:, None], arrays["A_heatmap"]) < 2e-5
    truth = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)
    assert off(negative_log_likelihood(flow, info, truth), arrays["A_nf_last"]) < 2e-4
    losses = [0.85 ** (4 - i) * negative_log_likelihood(f, w, truth).mean() for i, (f, w) in enumerate(predictions)]
    assert abs(sum(losses).item() - arrays["A_sequence_loss"]) < 1e-4


@golden
def test_intermediates_are_the_official_ones(net):
    arrays = np.load(filling.GOLDEN / "searaft.npz", allow_pickle=False)
    image1, image2 = (net.prepare(torch.from_numpy(arrays[name]), 0) for name in ("A_image1", "A_image2"))
    with torch.inference_mode():
        features1, features2 = net.fnet(image1), net.fnet(image2)
        assert off(features1, arrays["A_fmap1"]) < 2e-5
        encoded = net.cnet(torch.cat((image1, image2), dim=1))
        assert off(net.init_conv(encoded), arrays["A_init_conv"]) < 2e-5
        correlation = Correlation(features1, features2, 4096)
        steps = list(net.refinements(encoded, correlation))
        assert off(correlation(steps[0][1]), arrays["A_corr_lookup0"]) < 1e-4
    for (hidden, _, _), official in zip(steps[1:], arrays["A_net_iters"], strict=True):
        assert off(hidden[0], official) < 5e-5


def off(found: Tensor, official: np.ndarray) -> float:
    return float(np.abs(found.numpy() - official).max())


def negative_log_likelihood(flow: Tensor, info: Tensor, truth: Tensor) -> Tensor:
    """Of the truth under the predicted mixture, as the paper trains it; the second component is a unit Laplace."""
    weights, log_scales = info[:, :2], torch.stack((info[:, 2].clamp(0, 10), torch.zeros_like(info[:, 2])), dim=1)
    error = (truth - flow).abs()[:, None]
    log_laplace = -np.log(2) - log_scales[:, :, None] - error * torch.exp(-log_scales[:, :, None])
    return weights.logsumexp(dim=1, keepdim=True) - (weights[:, :, None] + log_laplace).logsumexp(dim=1)


def test_epsilons_that_outputs_hardly_show(net):
    assert {m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


def test_l_is_m_with_more_iterations():
    m, large = SeaRAFT("M"), SeaRAFT("L")
    assert {k: v.shape for k, v in m.state_dict().items()} == {k: v.shape for k, v in large.state_dict().items()}
    assert (m.iterations, large.iterations) == (4, 12)
    assert sum(p.numel() for p in m.parameters()) == 19_663_876
    with pytest.raises(ValueError, match="no variant 'XL'"):
        SeaRAFT("XL")


def test_both_official_layouts_load(net, tmp_path):
    state = filling.state(net)
    short = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    safe = {key: tensor for key, tensor in short.items() if ".downsample.1." not in key}
    assert (len(state), len(safe)) == (276, 256)
    torch.save(state, tmp_path / "a.pth")
    save_file(safe, tmp_path / "a.safetensors")
    from_pth = SeaRAFT("S").load_checkpoint(tmp_path / "a.pth").state_dict()
    from_safe = SeaRAFT("S").load_checkpoint(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(from_pth[key], state[key]) for key in state)
    assert all(torch.equal(from_safe[key], short[key].to(state[key].dtype)) for key in state)


def test_wrong_weights_are_refused_by_name(net, tmp_path):
    state = filling.state(net)
    with pytest.raises(ValueError, match="the state dict: holds SEA-RAFT S, expected weights of M"):
        SeaRAFT("M").load_checkpoint(state)
    with pytest.raises(ValueError, match="holds SEA-RAFT M or L, expected weights of S"):
        net.load_checkpoint(SeaRAFT("L").state_dict())
    with pytest.raises(ValueError, match=r"lacks init_conv\.bias, expected exactly the keys of SeaRAFT"):
        net.load_checkpoint({key: tensor for key, tensor in state.items() if key != "init_conv.bias"})
    with pytest.raises(ValueError, match=r"has the surplus a, b, c \(and 1 more\)"):
        net.load_checkpoint(state | {key: torch.zeros(1) for key in "abcd"})
    with pytest.raises(ValueError, match=r"holds init_conv\.bias of shape 3 instead of 256"):
        net.load_checkpoint(state | {"init_conv.bias": torch.zeros(3)})
    (tmp_path / "torn.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"torn\.safetensors: not readable as weights"):
        net.load_checkpoint(tmp_path / "torn.safetensors")
    torch.save({"loss": filling.checksum}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth: not readable as weights"):
        net.load_checkpoint(tmp_path / "code.pth")


@pytest.mark.parametrize(("height", "width"), [(121, 124), (129, 135)])
def test_any_size_gives_flow_of_that_size_and_batches_do_not_mix(net, height, width):
    frames = texture(3, height, width)
    with torch.inference_mode():
        flow, info = net(frames[:2], frames[1:])
        alone, _ = net(frames[1:2], frames[2:])
    assert flow.shape == (2, 2, height, width)
    assert info.shape == (2, 4, height, width)
    assert (flow[1] - alone[0]).abs().max() < 1e-4


def test_scale_follows_the_spring_protocol(net):
    """At scale -1 the result is that of the halved images, enlarged and doubled."""
    frames = texture(2, 250, 244)
    with torch.inference_mode():
        flow, info = net(frames[:1], frames[1:], scale=-1)
        small, small_info = net(*(F.avg_pool2d(frame, 2) for frame in frames.split(1)))
    doubled = 2 * F.interpolate(small, size=(250, 244), mode="bilinear")
    assert (flow - doubled).abs().max() < 1e-3
    assert torch.allclose(info, small_info.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-4)


def test_odd_sizes_keep_their_last_row_under_a_scale(net):
    with torch.inference_mode():
        flow, info = net(*texture(2, 245, 249).split(1), scale=-1)
    assert flow.shape[2:] == info.shape[2:] == (245, 249)


def test_constant_images_give_finite_flow_and_bad_ones_are_refused(net):
    gray = torch.full((1, 3, 128, 128), 127.0)
    with torch.inference_mode():
        flow, info = net(gray, gray)
        black, _ = net(0 * gray, gray)
    assert torch.isfinite(flow).all()
    assert torch.isfinite(info).all()
    assert torch.isfinite(black).all()
    gray[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="values that are not finite"):
        net(gray, gray)
    with pytest.raises(ValueError, match=r"given 120×160 pixels .* at least 121 a side"):
        net(torch.zeros(1, 3, 120, 160), torch.zeros(1, 3, 120, 160))


def test_the_lookup_is_grid_sample_with_x_slow():
    features1, features2 = filling.noise("f1", (2, 8, 17, 19)), filling.noise("f2", (2, 8, 17, 19))
    flow = 30 * filling.noise("flow", (2, 2, 17, 19)) ** 3
    found = Correlation(features1, features2, 4096)(flow)
    volume = torch.einsum("bcq,bcp->bqp", features1.flatten(2), features2.flatten(2)) / 8**0.5
    volume = volume.reshape(2 * 17 * 19, 1, 17, 19)
    x, y = flow[:, 0] + torch.arange(19), flow[:, 1] + torch.arange(17)[:, None]
    for level in range(4):
        height, width = volume.shape[2:]
        taps = torch.arange(-4.0, 5)
        at_x = (x.reshape(-1, 1, 1) / 2**level + taps[:, None]).expand(-1, 9, 9)
        at_y = (y.reshape(-1, 1, 1) / 2**level + taps).expand(-1, 9, 9)
        grid = torch.stack((2 * at_x / (width - 1) - 1, 2 * at_y / (height - 1) - 1), dim=-1)
        official = F.grid_sample(volume, grid, align_corners=True).reshape(2, 17, 19, 81).permute(0, 3, 1, 2)
        assert (found[:, 81 * level : 81 * (level + 1)] - official).abs().max() < 1e-5
        volume = F.avg_pool2d(volume, 2)


def test_a_wild_flow_reads_zeros():
    features = filling.noise("f", (1, 8, 16, 16))
    wild = torch.full((1, 2, 16, 16), 3e12)
    assert Correlation(features, features, 4096)(wild).abs().max() == 0


def test_correlation_in_rows_is_the_kept_one():
    features1, features2 = filling.noise("f1", (1, 8, 20, 33)), filling.noise("f2", (1, 8, 20, 33))
    flow = 5 * filling.noise("flow", (1, 2, 20, 33))
    kept, rows = Correlation(features1, features2, 64), Correlation(features1, features2, 0)
    assert kept.kept is not None
    assert rows.kept is None
    assert rows.rows == 1
    assert torch.allclose(kept(flow), rows(flow), atol=1e-6)


def both_ways(frames: int, stride: int) -> np.ndarray:
    start = np.arange(frames - stride)
    there = np.stack((start, start + stride), axis=1)
    return np.concatenate((there, there[:, ::-1]))


def pairwise(net: SeaRAFT, frames: Tensor, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        out = [net(frames[i : i + 1], frames[j : j + 1]) for i, j in pairs.tolist()]
    return torch.cat([flow for flow, _ in out]), torch.cat([info for _, info in out])


def together(video: VideoFlow, frames: Tensor, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
    flow, info = (
        torch.full((len(pairs), 2, *frames.shape[2:]), torch.nan),
        torch.empty(len(pairs), 4, *frames.shape[2:]),
    )
    for places, some_flow, some_info in video(frames, pairs):
        assert torch.isnan(flow[places]).all(), "a pair came twice"
        flow[places], info[places] = some_flow, some_info
    return flow, info


@pytest.mark.parametrize("pairs_at_once", [1, 5])
def test_a_clip_at_once_has_the_pairwise_numbers(net, pairs_at_once):
    frames = texture(5, 121, 130)
    pairs = np.concatenate((both_ways(5, 1)[[0, 4, 6]], both_ways(5, 4), [[2, 2], [0, 1]]))
    video = VideoFlow(net, pairs_at_once=pairs_at_once, channels_last=pairs_at_once == 1)
    flow, info = together(video, frames, pairs)
    official_flow, official_info = pairwise(net, frames, pairs)
    assert (flow - official_flow).abs().max() < 2e-4
    assert (info - official_info).abs().max() < 2e-5
    assert torch.equal(flow[-1], flow[0])


def test_a_small_budget_changes_nothing_but_memory(net):
    frames, pairs = texture(2), both_ways(2, 1)[:1]
    rows, official = VideoFlow(filled("S", max_volume_mib=1)), pairwise(net, frames, pairs)[0]
    assert (together(rows, frames, pairs)[0] - official).abs().max() < 2e-4


def test_fewer_pairs_are_taken_where_correlation_does_not_fit(net):
    assert sea_raft.volume_mib(480, 720, 0) == pytest.approx(148, abs=1)
    assert sea_raft.volume_mib(1080, 1920, 0) == pytest.approx(5600, rel=0.1)
    video = VideoFlow(net, pairs_at_once=8)
    assert [video._at_once(*size) for size in ((240, 368), (480, 720), (720, 1280), (1080, 1920))] == [8, 8, 1, 1]


def test_features_are_computed_once_per_frame_and_then_forgotten(net, monkeypatch):
    video = VideoFlow(net, pairs_at_once=2)
    encoded, alive = [], []
    fnet, correlation = video.net.fnet.forward, Correlation.__init__
    monkeypatch.setattr(video.net.fnet, "forward", lambda x: (encoded.append(len(x)), fnet(x))[1])
    monkeypatch.setattr(sea_raft.SeaRAFT, "refinements", lambda *_: iter([still(len(alive))]))
    monkeypatch.setattr(Correlation, "__init__", lambda *a: (alive.append(1), correlation(*a))[1])
    frames = texture(9)
    for places, _, _ in video(frames, both_ways(9, 1)):
        assert len(places) == 1
    assert sum(encoded) == 9
    assert max(encoded) == 2


def still(_: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(1, 128, 16, 17), torch.zeros(1, 2, 16, 17), torch.zeros(1, 4, 16, 17)


def test_half_precision_stays_near(net):
    frames = texture(2)
    exact = pairwise(net, frames, both_ways(2, 1))[0]
    flow, _ = together(VideoFlow(net, dtype=torch.bfloat16), frames, both_ways(2, 1))
    assert flow.dtype == torch.float32
    assert (flow - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.fixture(scope="module")
def annotator(net, tmp_path_factory) -> SeaRaft:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(filling.state(net), path)
    return SeaRaft(variant="S", weights=str(path))


def test_the_annotator_answers_in_pixels_of_the_clip(annotator, net):
    flow_model = annotator.load()
    assert isinstance(flow_model, FlowModel)
    rgb = texture(2, 122, 126).round().to(torch.uint8)
    pairs = np.array([[1, 0]])
    pixels = rgb.permute(0, 2, 3, 1).numpy()
    pixels.setflags(write=False)  # as arrays are that another process handed over
    answer = flow_model(pixels, pairs)
    flow, info = pairwise(net, rgb, pairs)
    assert np.abs(answer.flow - flow.permute(0, 2, 3, 1).numpy()).max() < 2e-4
    assert np.abs(answer.uncertainty - uncertainty(info).numpy()).max() < 2e-5


def test_small_one_frame_and_empty_requests(annotator):
    flow_model = annotator.load()
    small = np.zeros((1, 40, 70, 3), np.uint8)
    nothing = flow_model(small, np.zeros((0, 2), np.int64))
    assert nothing.flow.shape == (0, 40, 70, 2)
    itself = flow_model(small, np.array([[0, 0]]))
    assert np.isfinite(itself.flow).all()
    with pytest.raises(ValueError, match=r"asked for frame 1, the clip has frames 0\.\.0"):
        flow_model(small, np.array([[0, 1]]))


def test_frames_too_small_for_the_network_are_enlarged():
    assert [smallest_scale(h, w) for h, w in ((121, 500), (120, 160), (60, 61), (484, 484), (242, 242))] == [
        0,
        1,
        2,
        -2,
        -1,
    ]


def test_last_keeps_one():
    cells = [tuple(torch.full((1,), float(k)) for _ in range(3)) for k in range(3)]
    assert last(iter(cells))[0] == 2
