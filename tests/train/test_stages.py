"""Every stage: what it moves, what it leaves, and that a sample's part in it is its own."""

from dataclasses import replace
from functools import cache

import examples
import pytest
import torch
from pydantic import TypeAdapter

from shared.knobs import Knobs
from train import models, sample, stages
from train.models.parts import Models
from train.noise import Noise
from train.stages import ARMS, STAGES, Decoder, Generator, Joint, SelfSupervised

ALL = (Generator(), Decoder(), Joint(), SelfSupervised())
NOISE = Noise(seed=0, positions=(4, 5))


@cache
def _models() -> Models:
    """Past the start, where zero rows would hide what depends on them."""
    built = models.build(models.ModelKnobs(seed=3))
    with torch.no_grad():
        for weight in built.dit.proj_out.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return built


def _gradients(stage: Knobs, of: Models, batch: sample.Batch, noise: Noise, **more) -> dict[str, torch.Tensor]:
    everything = torch.nn.ModuleDict({"dit": of.dit, "dpt": of.dpt, "vae": of.vae})
    everything.requires_grad_(False).zero_grad(set_to_none=True)
    for module in stage.trainable(of).values():
        module.requires_grad_(True)
    stage.loss(of, batch, noise, **more)["total"].backward()
    found = {name: value.grad for name, value in everything.named_parameters() if value.grad is not None}
    everything.requires_grad_(False)
    return found


@pytest.mark.parametrize("stage", ALL, ids=lambda stage: stage.kind)
def test_a_stage_moves_what_it_names_and_nothing_else(stage):
    of, batch = _models(), examples.batch("many_moving", "orbit")
    gradients = _gradients(stage, of, batch, NOISE)
    named = {part.split(".")[0] for part in stage.trainable(of)}
    assert {name.split(".")[0] for name in gradients} == named
    assert all(torch.isfinite(value).all() for value in gradients.values())
    for part in named:
        assert any(value.any() for name, value in gradients.items() if name.startswith(part))


@pytest.mark.parametrize("stage", ALL, ids=lambda stage: stage.kind)
def test_a_sample_of_weight_zero_contributes_exactly_nothing(stage):
    of, batch = _models(), examples.batch("many_moving", "orbit")
    silent = replace(batch, weight=torch.tensor([1.0, 0.0]))
    other = replace(silent, rgb=silent.rgb.clone(), scene_flow=silent.scene_flow.clone())
    other.rgb[1] ^= 255
    other.scene_flow[1] += 3
    first, second = (_gradients(stage, of, one, NOISE) for one in (silent, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stage", [Generator(), Joint()], ids=lambda stage: stage.kind)
def test_a_batch_is_the_mean_of_its_samples_whatever_the_split(stage):
    of, batch = _models(), examples.batch("many_moving", "orbit")
    together = stage.loss(of, batch, NOISE)
    alone = [
        stage.loss(of, examples.batch(kind), Noise(seed=0, positions=(position,)), torch.tensor(2.0))
        for kind, position in (("many_moving", 4), ("orbit", 5))
    ]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(one[name].item() for one in alone), rel=1e-4, abs=1e-6)


def test_a_batch_of_placeholders_costs_nothing():
    empty = sample.collate([sample.placeholder(9, 48, 64, id="a"), sample.placeholder(9, 48, 64, id="b")])
    for stage in ALL:
        assert all(value.item() == 0 for value in stage.loss(_models(), empty, NOISE).values())


def test_the_joint_loss_is_equation_four():
    of, batch = _models(), examples.batch("many_moving")
    one = Noise(seed=0, positions=(4,))
    found = Joint(weigh_by_signal=False).loss(of, batch, one)
    dpt = found["depth"] + found["points"] + found["cameras"] + found["mask"] + 5 * found["scene_flow"]
    reg = found["depth_consistency"] + found["smooth_flow"]
    diffusion = found["diffusion_rgb"] + found["diffusion_geometry"]
    assert found["total"].item() == pytest.approx((diffusion + 0.1 * dpt + 0.5 * reg).item(), rel=1e-5)
    signal = of.alpha_bar[one.integers("time", 1000, (), torch.zeros(()))].item()
    weighed = Joint().loss(of, batch, one)["total"].item()
    assert weighed == pytest.approx((diffusion + signal * (0.1 * dpt + 0.5 * reg)).item(), rel=1e-5)


def test_geometry_losses_reach_the_transformer_also_with_a_frozen_backbone():
    of, batch = _models(), examples.batch("many_moving", "orbit")
    frozen = Joint(freeze_backbone=True, weigh_by_signal=False)
    with_geometry = _gradients(frozen, of, batch, NOISE)
    without = _gradients(frozen.changed(dpt_weight=0.0, reg_weight=0.0), of, batch, NOISE)
    moved = [name for name in with_geometry if name.startswith("dit.")]
    assert any(not torch.equal(with_geometry[name], without[name]) for name in moved)
    assert not any(name.startswith("dpt.backbone") for name in with_geometry)
    assert any(name.startswith("dpt.heads") for name in with_geometry)


def test_clips_without_geometry_still_teach_rgb():
    of, batch = _models(), examples.batch("orbit")
    bare = replace(batch, has_depth=torch.tensor([False]))
    found = Generator().loss(of, bare, Noise(seed=0, positions=(0,)))
    assert found["diffusion_geometry"] == 0
    assert found["diffusion_rgb"] > 0


def test_a_loss_that_is_not_finite_leaves_no_gradient_that_is():
    """Nothing may ask for its value in the middle of a step; the step meets it at its end, in the length of the gradient."""
    of, batch = _models(), examples.batch("orbit")
    torn = replace(batch, scene_flow=torch.full_like(batch.scene_flow, float("nan")))
    gradients = _gradients(Decoder(), of, torn, Noise(seed=0, positions=(0,)))
    assert not any(torch.isfinite(value).all() for value in gradients.values())


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_of_the_ablation_trains(name):
    arm = ARMS[name]
    of = examples.built(geometry_latent=arm.geometry_latent)
    batch = examples.batch("many_moving", "orbit")
    for stage in arm.stages:
        found = stage.loss(of, batch, NOISE)
        assert torch.isfinite(found["total"])
        assert ("diffusion_geometry" in found) == (arm.geometry_latent and stage.kind in ("generator", "joint"))
    assert of.dpt.knobs.reads == ("geometry" if arm.geometry_latent else "rgb")


def test_stages_are_chosen_by_their_kind():
    choose = TypeAdapter(STAGES)
    for stage in ALL:
        assert choose.validate_python({"kind": stage.kind}) == stage
    assert all(stage.parts >= stages.LATENT for stage in ALL)
    assert "key_flow" in SelfSupervised().parts
    assert "motion.key_scene_flow" not in SelfSupervised().parts


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_saved_model_does_the_same(tmp_path, lora_rank):
    of = models.build(models.ModelKnobs(lora_rank=lora_rank))
    of.save(tmp_path)
    again, batch = models.load(tmp_path), examples.batch("many_moving", "orbit")
    assert again.knobs == of.knobs
    first, second = (Joint().loss(one, batch, NOISE)["total"] for one in (of, again))
    assert first.item() == pytest.approx(second.item(), rel=1e-6)


def test_the_saved_folder_is_a_diffusers_pipeline_of_parts(tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    examples.built().save(tmp_path)
    vae = AutoencoderKLCogVideoX.from_pretrained(tmp_path, subfolder="vae", low_cpu_mem_usage=False)
    scheduler = CogVideoXDDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert vae.config.scaling_factor == 0.7
    assert torch.allclose(scheduler.alphas_cumprod.double(), examples.built().alpha_bar, atol=1e-7)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.yaml is missing"):
        models.load(tmp_path)
    examples.built().save(tmp_path, only=("vae",))
    with pytest.raises(ValueError, match="lacks transformer, decoder"):
        models.load(tmp_path)


def test_a_base_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no vae in the diffusers layout"):
        models.build(models.ModelKnobs(base=str(tmp_path)))
