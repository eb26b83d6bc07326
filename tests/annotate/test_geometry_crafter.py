"""GeometryCrafter against the official program's numbers: the networks, and the tiny pipeline that is the daily test."""

import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from annotate.depth import geometry_crafter as annotator
from annotate.depth.geometry_crafter import GeometryCrafter, Loaded, MoGePrior, processing_size
from annotate.networks import clip_vision, moge, svd_unet
from annotate.networks import geometry_crafter as gc
from annotate.networks.clip_vision import ClipVision
from annotate.networks.pointmap_vae import PointmapVAE, SVDEncoder
from annotate.networks.svd_blocks import VideoResnet
from annotate.networks.svd_unet import SVDUNet
from shared.clip import AnnotatedClip
from tests import filling

golden = pytest.mark.skipif(
    not filling.GOLDEN.is_dir(), reason="the official program's arrays are not beside this checkout"
)
TINY_UNET = {"widths": (32, 64, 64, 64), "heads": (2, 4, 4, 4), "layers": 1, "image_width": 32, "time_id_width": 32}
TINY_VAE = {"encoder_widths": (32, 32, 64, 64), "encoder_layers": 1, "decoder_widths": (64,) * 4, "decoder_layers": 1}
TINY_CLIP = {"width": 32, "hidden": 64, "layers": 2, "heads": 4, "patch": 32, "outputs": 32}


@pytest.fixture(scope="module")
def arrays():
    return np.load(filling.GOLDEN / "geometrycrafter.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def networks() -> gc.Networks:
    return tiny_networks(8)


def tiny_networks(in_channels: int, prior: gc.Prior | None = None) -> gc.Networks:
    clip = ClipVision(**TINY_CLIP)
    clip.load_checkpoint(filling.state(clip.model) | {clip_vision.OLD_BUFFER: torch.arange(50)[None]})
    loaders = {
        "prior": lambda: prior or stand_in,
        "clip": lambda: clip,
        "svd_encoder": lambda: filled(SVDEncoder(widths=(32, 32, 64, 64), layers=1)),
        "pointmap_vae": lambda: filled(PointmapVAE(**TINY_VAE)),
        "unet": lambda: filled(SVDUNet(in_channels, **TINY_UNET)),
    }
    return gc.Networks(loaders, one_at_a_time=False)


def filled(net):
    return net.load_checkpoint(filling.state(net))


def stand_in(frames: Tensor) -> gc.Points:
    """Points in closed form in MoGe's place."""
    height, width = frames.shape[2:]
    u, v = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    z = 2 + 1.5 * frames.mean(1) + 0.5 * v + 0.25 * u**2
    f = (0.6 + 0.05 * frames.mean((1, 2, 3)))[:, None, None]
    points = torch.stack((u * f * z + 0.01, v * f * (height / width) * z - 0.02, z), dim=-1)
    return points, frames[:, 0] + 0.3 * u > 0.25


def off(found: Tensor, official: np.ndarray) -> float:
    return float(np.abs(found.numpy() - official).max())


@golden
@pytest.mark.parametrize(
    ("build", "keys", "parameters"),
    [
        (lambda: SVDUNet(8), "geometrycrafter_unet_determ_keys", 1_524_623_082),
        (lambda: SVDUNet(12), "geometrycrafter_unet_keys", 1_524_634_602),
        (PointmapVAE, "geometrycrafter_pmap_vae_keys", 98_241_316),
        (lambda: ClipVision().model, "svd_xt_image_encoder_keys", None),
    ],
)
def test_keys_and_shapes_are_the_official_ones(build, keys, parameters):
    with torch.device("meta"):
        net = build()
    official = json.loads((filling.GOLDEN / f"{keys}.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in net.state_dict().items()} == official
    assert parameters in (None, sum(p.numel() for p in net.parameters()))


@golden
def test_the_svd_encoder_takes_the_whole_vaes_file():
    official = json.loads((filling.GOLDEN / "svd_xt_vae_keys.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in official.items()}
    with torch.device("meta"):
        assert SVDEncoder().load_checkpoint(state).quant_conv.weight.is_meta
        with pytest.raises(ValueError, match=r"lacks quant_conv\.bias"):
            SVDEncoder().load_checkpoint({key: t for key, t in state.items() if key != "quant_conv.bias"})


@golden
@pytest.mark.slow
def test_the_full_pointmap_vae_is_the_official_one(arrays):
    vae = PointmapVAE()
    state = filling.state(vae)
    assert filling.checksum(state).startswith("27971b1011235702")
    vae.load_checkpoint(state)
    maps, svd = torch.from_numpy(arrays["vae_x"]), torch.from_numpy(arrays["vae_latent_params"])
    with torch.inference_mode():
        assert off(vae.encoder(maps), arrays["vae_encoder_out"]) < 2e-5
        posterior = vae.encode(maps, svd)
        assert off(posterior, arrays["vae_posterior_params"]) < 2e-6
        assert off(posterior[:, :4], arrays["vae_posterior_mode"]) < 2e-6
        decoded = vae.decode(torch.from_numpy(arrays["vae_z"]))
    for found, (name, tolerance) in zip(decoded, (("imap", 3e-5), ("dmap", 3e-5), ("vmask", 5e-5)), strict=True):
        assert off(found, arrays[f"vae_dec_{name}"]) < tolerance


@golden
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("WORLDREEL_SLOW") != "1", reason="6 GB and minutes: set WORLDREEL_SLOW=1")
def test_the_full_unet_is_the_official_one(arrays):
    names = ("unet_determ_sample", "unet_encoder_hidden_states", "unet_added_time_ids")
    sample, images, time_ids = (torch.from_numpy(arrays[name]) for name in names)
    with torch.device("meta"):
        unet = SVDUNet(8)
    unet.load_checkpoint(filling.state(unet))
    with torch.inference_mode():
        found = unet(sample, float(arrays["unet_determ_timestep"]), images, time_ids)
    assert off(found, arrays["unet_determ_out"]) < 1.5e-5


@golden
def test_tiny_networks_are_filled_as_the_official_ones():
    unets = [filling.checksum(filling.state(SVDUNet(channels, **TINY_UNET))) for channels in (12, 8)]
    assert [checksum[:16] for checksum in unets] == ["34719e169eba4cff", "3ba20b7ed3a3abfc"]
    assert filling.checksum(filling.state(PointmapVAE(**TINY_VAE))).startswith("94fb4d9fa928b3e5")
    assert filling.checksum(filling.state(ClipVision(**TINY_CLIP).model)).startswith("7daff3d0cd104efd")


@golden
def test_the_prior_is_the_official_one(arrays):
    maps = gc.prior_maps(*stand_in(torch.from_numpy(arrays["pipe_frames"]).float() / 255))
    assert off(maps.disparity[:, 0], arrays["pipe_prior_disp"]) < 2e-6
    assert off(maps.sign[:, 0], arrays["pipe_prior_mask"]) < 2e-6
    assert off(torch.cat((maps.xy, maps.log_z), dim=1), arrays["pipe_prior_pmap"]) < 2e-6
    assert off(torch.cat((maps.center, maps.focal), dim=1)[:, :, None, None], arrays["pipe_prior_intr"]) < 2e-6


@golden
def test_the_whole_pipeline_is_the_official_one(arrays, networks):
    frames = torch.from_numpy(arrays["pipe_frames"]).float() / 255
    encoded = gc.encode(networks, frames, (64, 128), frames_at_once=3)
    assert off(encoded.images, arrays["pipe_video_embeddings"]) < 2e-5
    assert off(encoded.video, arrays["pipe_video_latents"]) < 2e-5
    assert off(encoded.prior, arrays["pipe_prior_latents"]) < 5e-6
    latents = gc.determ(networks, encoded, window=4, overlap=2)
    assert off(latents, arrays["pipe_determ_latents_all"]) < 1e-4
    geometry = gc.decode(networks, latents, (72, 136), chunk=3)
    points, official = geometry.points().numpy(), arrays["pipe_determ_point_map"]
    assert np.abs(points[..., 2] - official[..., 2]).max() < 1e-4
    assert np.abs(points[..., :2] / points[..., 2:] - official[..., :2] / official[..., 2:]).max() < 1e-6
    assert (geometry.valid.numpy() != arrays["pipe_determ_mask"]).sum() <= 20


@golden
def test_the_noise_levels_are_the_official_ones(arrays):
    levels = gc.sigmas(5)
    assert np.allclose(levels, arrays["sched_sigmas"], rtol=1e-6, atol=1e-6)
    assert np.allclose(levels[:-1].log() / 4, arrays["sched_timesteps"], rtol=1e-6, atol=1e-6)
    assert np.isclose(np.sqrt(float(levels[0]) ** 2 + 1), arrays["sched_init_noise_sigma"], rtol=1e-6)


def test_epsilons_that_outputs_hardly_show():
    with torch.device("meta"):
        unet, vae = SVDUNet(8), PointmapVAE()
    for name, norm in unet.named_modules():
        if isinstance(norm, nn.LayerNorm):
            assert norm.eps == 1e-5, name
        if isinstance(norm, nn.GroupNorm):
            deep = name.startswith(("down_blocks.3", "mid_block.resnets", "conv_norm_out"))
            assert norm.eps == (1e-5 if deep else 1e-6), name
    for name, norm in vae.named_modules():
        if isinstance(norm, nn.GroupNorm):
            assert norm.eps == (1e-5 if "temporal" in name else 1e-6), name
    assert all(block.switched for block in vae.modules() if isinstance(block, VideoResnet))
    assert not any(block.switched for block in unet.modules() if isinstance(block, VideoResnet))


def test_the_unet_is_diffusers_own_when_frames_share_an_image():
    """Stock SVD repeats one vector over the frames; with equal vectors ours must be the same network."""
    from diffusers import UNetSpatioTemporalConditionModel

    theirs = UNetSpatioTemporalConditionModel(
        in_channels=12,
        block_out_channels=TINY_UNET["widths"],
        num_attention_heads=TINY_UNET["heads"],
        layers_per_block=1,
        cross_attention_dim=32,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
    ).eval()
    ours = SVDUNet(12, **TINY_UNET)
    state = filling.state(ours)
    theirs.load_state_dict(state)
    ours.load_checkpoint(state)
    sample, image = filling.noise("sample", (2, 3, 12, 16, 8)), filling.noise("image", (2, 1, 32))
    time_ids = torch.tensor([[7.0, 127.0, 0.02], [3.0, 10.0, 0.5]])
    with torch.inference_mode():
        expected = theirs(sample, -0.7, image, time_ids).sample
        found = ours(sample, -0.7, image.expand(-1, 3, -1), time_ids)
        other = ours(sample, -0.7, filling.noise("images", (2, 3, 32)), time_ids)
    assert (found - expected).abs().max() < 2e-5
    assert (other - expected).abs().max() > 1e-2


def test_the_wrong_unet_and_odd_latents_are_refused():
    determ = SVDUNet(8, **TINY_UNET)
    with pytest.raises(ValueError, match="holds a UNet of 12 input channels, expected 8"):
        determ.load_checkpoint(filling.state(SVDUNet(12, **TINY_UNET)))
    with pytest.raises(ValueError, match="latents of 9×16, expected sides that divide by 8"):
        determ(torch.zeros(1, 1, 8, 9, 16), 0.0, torch.zeros(1, 1, 32), torch.zeros(1, 3))


def test_clip_sees_the_whole_frame_blurred_against_aliasing():
    checker = torch.ones(1, 3, 448, 672)
    checker[..., ::2, ::2] = -1
    checker[..., 1::2, 1::2] = -1
    seen = clip_vision.pixels(checker) * torch.tensor(clip_vision.STD).view(3, 1, 1) + torch.tensor(
        clip_vision.MEAN
    ).view(3, 1, 1)
    assert seen.shape == (1, 3, 224, 224)
    assert (seen[..., 8:-8, 8:-8] - 0.5).abs().max() < 0.25
    assert (F.interpolate(checker, size=(224, 224), mode="bicubic", align_corners=True) / 2).abs().max() > 0.45
    ramp = torch.linspace(-1, 1, 672).expand(1, 3, 448, 672)
    left_to_right = clip_vision.pixels(ramp)[0, 0, 100]
    assert left_to_right[0] < clip_vision.pixels(torch.full((1, 3, 448, 672), -0.98))[0, 0, 0, 0]
    assert (left_to_right.diff() > 0).all()


def test_pixels_against_diffusers_own_resizing():
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    for size in ((448, 672), (256, 320), (230, 224), (96, 100)):
        video = filling.noise("video", (1, 3, *size))
        expected = (_resize_with_antialiasing(video, (224, 224)) + 1) / 2
        mean, std = (torch.tensor(c).view(3, 1, 1) for c in (clip_vision.MEAN, clip_vision.STD))
        assert (clip_vision.pixels(video) - (expected - mean) / std).abs().max() < 2e-5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_euler_steps_against_diffusers_scheduler():
    """The same velocities must lead through the same latents."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_end=0.012,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
        steps_offset=1,
    )
    scheduler.set_timesteps(5)
    noise = filling.noise("noise", (3, 4, 8, 8))
    encoded = gc.Encoded(
        filling.noise("i", (3, 32)), filling.noise("v", (3, 4, 8, 8)), filling.noise("p", (3, 4, 8, 8))
    )
    unet = Velocity()
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = torch.cat((scheduler.scale_model_input(x, timestep), encoded.video, encoded.prior), dim=1)
        v = unet(scaled[None], float(timestep), encoded.images[None], None)[0]
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    found = gc.diff(gc.Networks({"unet": lambda: unet}, False), encoded, 110, 25, noise)
    assert (found * gc.LATENT_SCALE - x).abs().max() < 1e-4 * x.abs().max()


class Velocity(nn.Module):
    """A function of all inputs in the UNet's place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, timestep, images, time_ids):
        noisy, video, prior = x.chunk(3, dim=2)
        return torch.tanh(noisy + 0.3 * timestep) + 0.5 * video - 0.25 * prior + images.mean()


def test_windows_cover_a_video_and_fade_into_each_other():
    assert gc.spans(7, 4, 2) == [(0, 4), (2, 6), (4, 7)]
    assert gc.spans(4, 4, 3) == [(0, 4)]
    assert gc.spans(300, 110, 25) == [(0, 110), (85, 195), (170, 280), (255, 300)]
    with pytest.raises(ValueError, match="windows of 4 frames overlap by 4"):
        gc.spans(9, 4, 4)
    parts = [torch.full((end - start, 4, 1, 1), float(k)) for k, (start, end) in enumerate(gc.spans(7, 4, 2))]
    whole = None
    for part in parts:
        whole = gc.blended(whole, part, 2)
    assert whole[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert gc.blended(torch.zeros(3, 4, 1, 1), torch.ones(2, 4, 1, 1), 0).shape[0] == 5


@pytest.mark.parametrize("overlap", [0, 2])
def test_diff_reuses_its_noise_over_windows(overlap):
    """The second window's noise is the first's, turned by the overlap; where the official program fails (no overlap), too."""
    encoded = gc.Encoded(torch.zeros(7, 32), torch.zeros(7, 4, 8, 8), torch.zeros(7, 4, 8, 8))
    noise = filling.noise("noise", (4, 4, 8, 8))
    networks = gc.Networks({"unet": Velocity}, False)
    whole = gc.diff(networks, encoded, 4, overlap, noise)
    assert whole.shape[0] == 7
    first = gc.diff(networks, encoded.window(0, 4), 4, overlap, noise)
    assert torch.equal(whole[: 4 - overlap], first[: 4 - overlap])


def test_guidance_leads_away_from_the_unconditioned():
    networks = tiny_networks(12)
    encoded = gc.Encoded(
        filling.noise("i", (2, 32)), filling.noise("v", (2, 4, 8, 8)), filling.noise("p", (2, 4, 8, 8))
    )
    noise = filling.noise("noise", (2, 4, 8, 8))
    plain, guided = (gc.diff(networks, encoded, 110, 25, noise, guidance=g) for g in (1.0, 2.0))
    assert torch.isfinite(guided).all()
    assert (guided - plain).abs().max() > 0.01


def test_no_focal_without_grid_and_points_behind_the_camera_do_not_spread():
    """Odd sizes, empty frames and z below 0 outside the mask: each fails or turns to NaN in the official program."""
    frames = filling.noise("frames", (3, 3, 71, 135)).abs()
    points, valid = stand_in(frames)
    clean = gc.prior_maps(points, valid)
    broken = points.clone()
    broken[:, :5, :, 2] = -1e-9
    broken[0, 10, 10] = -points[0, 10, 10]
    valid[:, :5], valid[0, 10, 10], valid[2] = False, False, False
    maps = gc.prior_maps(broken, valid)
    assert all(torch.isfinite(part).all() for part in maps)
    assert torch.isfinite(maps.stacked((128, 192))).all()
    assert (maps.sign[2] == -1).all()
    assert torch.allclose(maps.xy[0, :, 10, 10], clean.xy[0, :, 10, 10])
    nothing = gc.prior_maps(points, torch.zeros_like(valid))
    assert all(torch.isfinite(part).all() for part in nothing)


def test_the_fit_to_an_odd_grid_is_the_true_focal_length():
    x, y = gc.grid(9, 15, torch.zeros(1))
    rays = torch.stack(((0.7 * x + 0.1).expand(9, 15), (0.4 * y - 0.2)[:, None].expand(9, 15), torch.ones(9, 15)), -1)
    maps = gc.prior_maps(rays[None] * 3, torch.ones(1, 9, 15, dtype=torch.bool))
    assert torch.allclose(maps.focal, torch.tensor([[0.7, 0.4]]), atol=1e-5)
    assert torch.allclose(maps.center, torch.tensor([[0.1, -0.2]]), atol=1e-5)


def test_decode_variants(networks):
    latents = 3 * filling.noise("z", (5, 4, 8, 8))
    fixed = gc.decode(networks, latents, (61, 67), chunk=2)
    per_frame = gc.decode(networks, latents, (61, 67), chunk=2, fixed_focal=False)
    free = gc.decode(networks, latents, (61, 67), chunk=2, projection=False)
    nearest = gc.decode(networks, latents, (61, 67), chunk=2, nearest=True)
    assert fixed.focal_x.unique().numel() == 1
    assert per_frame.focal_x.shape == (5, 1, 1)
    assert per_frame.focal_x.unique().numel() > 1
    assert free.focal_x.shape == (5, 61, 67)
    assert set(nearest.z[0].unique().tolist()) <= set(
        gc.decode(networks, latents, (64, 64), chunk=2).z[0].unique().tolist()
    )
    m = free.valid.float()
    assert torch.allclose(fixed.focal_y[0], (free.focal_y * m).mean() / (m.mean() + 1e-4))
    assert torch.allclose(free.points()[..., 2], free.z)
    assert (gc.decode(networks, latents, (61, 67), chunk=5).z - fixed.z).abs().max() > 0.01


def test_one_network_at_a_time_is_kept():
    made: list[str] = []
    loaders = {name: (lambda name=name: made.append(name) or object()) for name in ("a", "b")}
    frugal, roomy = gc.Networks(loaders, True), gc.Networks(loaders, False)
    for shelf, expected in ((frugal, ["a", "b", "a"]), (roomy, ["a", "b"])):
        made.clear()
        assert shelf["a"] is shelf["a"]
        assert shelf["b"] is shelf["b"]
        assert shelf["a"] is shelf["a"]
        assert made == expected


class SkyAt(nn.Module):
    """MoGe's place in the prior, with frames in which nothing is valid."""

    def __init__(self, empty: tuple[int, ...]) -> None:
        super().__init__()
        self.empty, self.at = empty, 0

    def infer(self, image: Tensor) -> moge.Inferred:
        points, raw = self.maps(image, 9)
        raw = raw * (self.at not in self.empty)
        self.at += 1
        focal, shift = moge.solve(points, raw > 0.5)
        return moge.render(points, raw, focal, shift, image.shape[2:])

    def maps(self, image: Tensor, level: int) -> tuple[Tensor, Tensor]:
        z = 2 + image.mean(1)
        points = moge.pinhole(z, torch.tensor([0.9]), image.shape[3] / image.shape[2])
        points[..., 2] -= 0.5
        return points, torch.ones_like(z)


def test_a_frame_of_sky_borrows_the_nearest_camera():
    frames = filling.noise("frames", (4, 3, 64, 80)).abs()
    points, _ = MoGePrior(SkyAt(empty=(0, 3)))(frames)
    seen, _ = MoGePrior(SkyAt(empty=()))(frames)
    assert torch.allclose(points[1], seen[1])
    assert (points - seen).abs().max() < 0.05
    lost, _ = MoGePrior(SkyAt(empty=(0, 1, 2, 3)))(frames)
    assert torch.isfinite(lost).all()


class NoFlow:
    """This annotator asks for none."""

    source = "none"

    def __call__(self, rgb, pairs):
        raise AssertionError("flow was asked for")


def clip_of(frames: int, height: int, width: int) -> AnnotatedClip:
    rgb = (filling.unit("rgb", frames * height * width * 3).reshape(frames, height, width, 3) * 127 + 128).astype(
        np.uint8
    )
    return AnnotatedClip(id="a", rgb=rgb, fps=8.0, source="a.mp4", frames=np.arange(frames))


@pytest.mark.parametrize(
    ("variant", "frames", "size"), [("determ", 7, (71, 91)), ("diff", 5, (64, 64)), ("determ", 1, (66, 130))]
)
def test_the_annotator_takes_any_size_and_length(variant, frames, size):
    knobs = GeometryCrafter(
        accept_licence=True, gpus=0, variant=variant, window=4, overlap=2, precision="float32", steps=2
    )
    loaded = Loaded(knobs, tiny_networks(8 if variant == "determ" else 12))
    clip = loaded(clip_of(frames, *size), NoFlow())
    assert clip.depth.z.shape == (frames, *size)
    assert not clip.depth.metric
    assert clip.depth.source == f"geometry-crafter-{variant}"
    assert (clip.depth.z[~clip.depth.valid] == 0).all()
    again = Loaded(knobs, tiny_networks(8 if variant == "determ" else 12))(clip_of(frames, *size), NoFlow())
    assert np.array_equal(clip.depth.z, again.depth.z)
    assert loaded(clip, NoFlow()) is clip


def test_a_clip_without_a_valid_pixel_has_no_focal_length(networks, monkeypatch):
    decode = gc.decode
    monkeypatch.setattr(gc, "decode", lambda *a, **k: nowhere(decode(*a, **k)))
    clip = Loaded(GeometryCrafter(gpus=0, precision="float32"), networks)(clip_of(2, 64, 64), NoFlow())
    assert not clip.depth.valid.any()
    assert not clip.depth.z.any()
    assert "depth_focal_px" not in clip.scores


def nowhere(geometry: gc.Geometry) -> gc.Geometry:
    nothing = torch.zeros_like(geometry.valid)
    return geometry._replace(valid=nothing, focal_x=0 * geometry.focal_x, focal_y=0 * geometry.focal_y)


def test_the_processing_size_keeps_detail_and_divides_by_64():
    assert processing_size(480, 720, 1024) == (512, 768)
    assert processing_size(240, 368, 1024) == (256, 384)
    assert processing_size(1080, 1920, 1024) == (576, 1024)
    assert processing_size(3, 5, 1024) == (64, 64)


def test_nothing_runs_before_the_licence_is_accepted():
    with pytest.raises(
        ValueError, match=r"academic, research and education use only .* Set depth\.accept_licence=true"
    ):
        GeometryCrafter().load()
    assert "academic" in GeometryCrafter.licence
    assert "Stability" in GeometryCrafter.licence


def test_windows_that_never_end_are_refused():
    with pytest.raises(ValidationError, match="windows of 20 frames overlap by 20"):
        GeometryCrafter(window=20, overlap=20)


def test_official_files_in_half_precision_run_behind_the_annotator(tmp_path, monkeypatch):
    """Every network from a file in the official layout, one at a time."""
    from safetensors.torch import save_file

    builds = {
        "UNet": lambda: SVDUNet(8, **TINY_UNET),
        "point-map": lambda: PointmapVAE(**TINY_VAE),
        "VAE": lambda: SVDEncoder(widths=(32, 32, 64, 64), layers=1),
        "CLIP": lambda: ClipVision(**TINY_CLIP),
        "MoGe": lambda: moge.MoGe(
            width=32, depth=2, heads=2, positions=5, last_blocks=2, projection=32, upsampling=(32, 32, 32)
        ),
    }
    monkeypatch.setenv("WORLDREEL_WEIGHTS", str(tmp_path))
    knobs = GeometryCrafter(accept_licence=True, gpus=0, precision="float32", low_memory=True)
    official = knobs.networks()
    tiny = []
    for network in official:
        build = next(build for word, build in builds.items() if word in network.name)
        net = build()
        state = filling.state(getattr(net, "model", net))
        network.place.parent.mkdir(parents=True, exist_ok=True)
        if network.file.endswith(".pt"):
            torch.save({"model_config": {}, "model": state}, network.place)
        else:
            save_file({key: tensor.half() for key, tensor in state.items()}, network.place)
        tiny.append(annotator.Network(**{**vars(network), "build": build}))
    monkeypatch.setattr(GeometryCrafter, "networks", lambda self: tuple(tiny))
    clip = knobs.load()(clip_of(3, 64, 64), NoFlow())
    assert np.isfinite(clip.depth.z).all()


def test_time_embeddings_put_cosines_first():
    embedded = svd_unet.sincos(torch.tensor([0.0, -2.5]), 8)
    assert embedded[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert torch.allclose(embedded[1, [0, 4]], torch.tensor([-2.5]).cos().new_tensor([np.cos(2.5), -np.sin(2.5)]))
