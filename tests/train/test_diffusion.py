"""The diffusion equations against the published ones and against diffusers' own scheduler."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from train import diffusion
from train.losses import diffusion as loss


def _scheduler(snr_shift_scale: float = 1.0) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=snr_shift_scale,
        clip_sample=False,
    )


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_is_diffusers(shift):
    theirs = _scheduler(shift).alphas_cumprod.double()
    ours = diffusion.alpha_bar(snr_shift_scale=shift)
    assert torch.allclose(ours, theirs, atol=1e-7)
    assert ours[-1] == 0
    assert (ours.diff() < 0).all()


def test_sampling_is_diffusers():
    theirs, ours = _scheduler(), diffusion.alpha_bar()
    theirs.set_timesteps(10)
    times = diffusion.trailing(10)
    assert times.tolist() == theirs.timesteps.tolist()
    a = b = _draw(2, 3, 4)
    for step, t in enumerate(times):
        v = _draw(2, 3, 4, step + 1)[..., 0]
        a_next = ours[times[step + 1]] if step < 9 else torch.ones((), dtype=torch.float64)
        a = diffusion.ddim(a, v, ours[t].expand(2), a_next.expand(2))
        b = theirs.step(v, t, b).prev_sample
        assert torch.allclose(a, b, atol=1e-5)


def test_the_stochastic_sampler_is_diffusers():
    theirs, ours = CogVideoXDPMScheduler.from_config(_scheduler().config), diffusion.alpha_bar()
    theirs.set_timesteps(10)
    times = diffusion.trailing(10).tolist()
    a = b = _draw(2, 3, 4)
    before = old = None
    for step, t in enumerate(times):
        v = _draw(2, 3, 4, step + 1)[..., 0]
        a_next = ours[times[step + 1]] if step < 9 else torch.ones((), dtype=torch.float64)
        draws = torch.Generator().manual_seed(step)
        both = [torch.randn(a.shape, dtype=a.dtype, generator=draws) for _ in range(2)]
        fresh = both[0 if step in (0, 9) else 1]  # theirs draws once more where it is of second order
        x0 = diffusion.x0_of(a, v, ours[t].expand(2))
        a = diffusion.dpm(a, x0, ours[t].expand(2), a_next.expand(2), fresh, before)
        before = x0, ours[t].expand(2)
        back = times[step - 1] if step else None
        b, old = theirs.step(v, old, t, back, b, generator=torch.Generator().manual_seed(step), return_dict=False)
        assert torch.allclose(a, b.double(), atol=1e-4), step


def test_fifty_steps_are_the_published_ones():
    times = diffusion.trailing(50).tolist()
    assert times[:3] == [999, 979, 959]
    assert times[-1] == 19


def test_every_quantity_can_be_had_back():
    x0, eps = _draw(5, 3, 2), _draw(5, 2, 3).reshape(5, 3, 2)
    a = diffusion.alpha_bar()[[0, 1, 500, 998, 999]]
    xt, v = diffusion.noised(x0, eps, a), diffusion.velocity(x0, eps, a)
    assert torch.allclose(diffusion.x0_of(xt, v, a), x0)
    assert torch.allclose(diffusion.eps_of(xt, v, a), eps)
    assert torch.equal(xt[-1], eps[-1])


def test_the_loss_on_v_is_the_weighted_loss_on_x0():
    x0, eps, guess = _draw(4, 3, 2, 2, 2), _draw(4, 3, 2, 4).reshape(4, 3, 2, 2, 2), _draw(4, 24).reshape(4, 3, 2, 2, 2)
    a = diffusion.alpha_bar()[[1, 300, 700, 990]]
    xt, v = diffusion.noised(x0, eps, a), diffusion.velocity(x0, eps, a)
    published = (diffusion.x0_of(xt, guess, a) - x0).square().flatten(1).mean(1) / (1 - a)
    assert torch.allclose(loss.loss(guess, v), published, rtol=1e-12)


def test_a_perfect_model_scores_zero_at_every_time():
    a = diffusion.alpha_bar()
    x0, eps = _draw(1000, 2), _draw(2, 1000).reshape(1000, 2)
    v = diffusion.velocity(x0, eps, a)
    assert loss.loss(v[:, :, None, None, None], v[:, :, None, None, None]).max() == 0


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="float32"):
        diffusion.noised(torch.zeros(1, 2).bfloat16(), torch.zeros(1, 2).bfloat16(), torch.ones(1))


def test_guidance_one_is_the_plain_prediction():
    with_prompt, without = _draw(2, 3), _draw(3, 2).reshape(2, 3)
    assert torch.allclose(diffusion.guided(with_prompt, without, 1.0), with_prompt)
    assert torch.allclose(diffusion.guided(with_prompt, without, 0.0), without)
