"""The diffusion of CogVideoX: one equation a function, always in float32 or better.

With a = alpha_bar[t], the share of signal at time t:

    x_t = sqrt(a) x_0 + sqrt(1 - a) eps          v = sqrt(a) eps - sqrt(1 - a) x_0

Half precision would add no noise at all at the first time steps, so half-precision input is refused.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

NUM_TIMESTEPS = 1000


def alpha_bar(
    num_timesteps: int = NUM_TIMESTEPS,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    snr_shift_scale: float = 1.0,
) -> Float64[Tensor, " steps"]:
    """Share of signal at each time: scaled-linear betas, signal-to-noise shift, and exactly zero signal at the last time.

    `snr_shift_scale` is 1 for the 5B models and 3 for the 2B one.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, dim=0)
    signal = signal / (snr_shift_scale + (1 - snr_shift_scale) * signal)
    root = signal.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def noised(x0: Float[Tensor, "B ..."], eps: Float[Tensor, "B ..."], a: Float[Tensor, " B"]) -> Float[Tensor, "B ..."]:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps."""
    signal, noise = _roots(a, x0)
    return signal * x0 + noise * eps


def velocity(x0: Float[Tensor, "B ..."], eps: Float[Tensor, "B ..."], a: Float[Tensor, " B"]) -> Float[Tensor, "B ..."]:
    """v = sqrt(a) eps - sqrt(1 - a) x_0, what the transformer predicts."""
    signal, noise = _roots(a, x0)
    return signal * eps - noise * x0


def x0_of(xt: Float[Tensor, "B ..."], v: Float[Tensor, "B ..."], a: Float[Tensor, " B"]) -> Float[Tensor, "B ..."]:
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v."""
    signal, noise = _roots(a, xt)
    return signal * xt - noise * v


def eps_of(xt: Float[Tensor, "B ..."], v: Float[Tensor, "B ..."], a: Float[Tensor, " B"]) -> Float[Tensor, "B ..."]:
    """eps = sqrt(a) v + sqrt(1 - a) x_t."""
    signal, noise = _roots(a, xt)
    return signal * v + noise * xt


def trailing(num_steps: int, num_timesteps: int = NUM_TIMESTEPS) -> Int64[Tensor, " steps"]:
    """Sampling times, the last (pure noise) first: 999, 979, ..., 19 for 50 steps."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"{num_steps} sampling steps, expected 1 to {num_timesteps}")
    times = torch.arange(num_timesteps, 0, -num_timesteps / num_steps, dtype=torch.float64)
    return times.round().long()[:num_steps] - 1


def ddim(
    xt: Float[Tensor, "B ..."],
    v: Float[Tensor, "B ..."],
    a: Float[Tensor, " B"],
    a_next: Float[Tensor, " B"],
) -> Float[Tensor, "B ..."]:
    """x at the next, less noisy time: the predicted x_0 noised again with the predicted eps. `a_next` = 1 ends."""
    return noised(x0_of(xt, v, a), eps_of(xt, v, a), a_next)


def dpm(
    xt: Float[Tensor, "B ..."],
    x0: Float[Tensor, "B ..."],
    a: Float[Tensor, " B"],
    a_next: Float[Tensor, " B"],
    fresh: Float[Tensor, "B ..."],
    before: tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]] | None = None,
) -> Float[Tensor, "B ..."]:
    """x at the next, less noisy time by SDE-DPM-Solver++ (2M), arXiv 2211.01095: it draws `fresh` noise at every step.

    With l = ln sqrt(a / (1 - a)), h the step of l to the next time and r h the one `before`, from there with its x_0':

        x' = (s' / s) exp(-h) x + sqrt(a') (1 - exp(-2h)) D + s' sqrt(1 - exp(-2h)) eps      D = x_0 + (x_0 - x_0') / (2 r)

    with s = sqrt(1 - a). The first step, from pure noise, and the last, to `a_next` = 1, are of first order: D = x_0.
    """
    if bool((a_next == 1).all()):
        return x0
    (signal, _), (signal_next, noise_next) = _roots(a, xt), _roots(a_next, xt)
    step = _log_ratio(a_next, xt) - _log_ratio(a, xt)  # infinite from pure noise
    straight = x0
    if before is not None:
        x0_before, a_before = before
        step_before = _log_ratio(a, xt) - _log_ratio(a_before, xt)
        straight = x0 + (x0 - x0_before) * (step / (2 * step_before)).to(x0.dtype)
    left = torch.exp(-2 * step)
    # (s' / s) exp(-h) = sqrt(a) s'^2 / (sqrt(a') s^2), which is 0 and not 0/0 from pure noise
    kept = signal * noise_next.square() / (signal_next * (1 - signal.square()))
    return (
        kept * xt
        + signal_next * (1 - left).to(x0.dtype) * straight
        + noise_next * (1 - left).sqrt().to(x0.dtype) * fresh
    )


def guided(
    conditional: Float[Tensor, "B ..."], unconditional: Float[Tensor, "B ..."], guidance: float
) -> Float[Tensor, "B ..."]:
    """Away from what the model says without the prompt; guidance 1 is the plain prediction."""
    return unconditional + guidance * (conditional - unconditional)


def _log_ratio(a: Float[Tensor, " B"], like: Tensor) -> Tensor:
    """Half of the logarithm of signal to noise, in float64; -inf for pure noise."""
    a = a.double().reshape(-1, *[1] * (like.ndim - 1))
    return (a.log() - (1 - a).log()) / 2


def _roots(a: Float[Tensor, " B"], like: Tensor) -> tuple[Tensor, Tensor]:
    if like.dtype in (torch.bfloat16, torch.float16) or a.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(f"diffusion in {like.dtype}: noise, targets and loss belong in float32")
    a = a.double().reshape(-1, *[1] * (like.ndim - 1))
    return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)
