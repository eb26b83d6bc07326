"""How sure the focal length is: what the cost does when it is pushed away from its optimum."""

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from annotate.cameras import bundle
from annotate.cameras.bundle import Fit, Problem, Solve, State

PUSH = 0.25
"""Of ln f, to either side."""
LENS_SHIFT = 0.05
"""More, and the focal length of a pinhole is in doubt."""
BEND = 0.05
"""Of a point half the long side from the center: how far a lens that is tried bends the picture."""
HELD = 0.12
"""Width of the cost's valley from which on a guess is better."""
CORRELATED = 8.0
"""Neighboring pixels share their flow errors, so the standard deviation of independent ones is this much too small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """Cost at the optimum and, poses and depths solved again, with the focal length pushed down and up."""

    here: float
    below: float
    above: float
    noise_ratio: float
    """Noise of the residuals over the σ of the cost, which has a floor."""
    least: float = 0.0
    """The relative change of f when something else changes: a lens that bends lines instead, or nothing but that f is let go."""

    @property
    def lift(self) -> float:
        """How much worse the better of the two pushed focal lengths is; negative: there is a better minimum."""
        return min(self.below, self.above) - self.here

    @property
    def rel_ci(self) -> float:
        """`width`, less where the flow is better than the cost's σ; at most 1, not less than `least`."""
        return max(min(self.width * min(self.noise_ratio, 1.0), 1.0), self.least)

    @property
    def width(self) -> float:
        """The relative change of f that lifts the cost by 0.01."""
        bend = (self.below + self.above - 2 * self.here) / (2 * PUSH**2)
        return math.sqrt(0.01 / bend) if bend > 0 else math.inf


def profile(problem: Problem, state: State, fit: Fit) -> Profile:
    """Six iterations each way with f fixed, at fixed σ."""
    sigma = max(0.15, fit.sigma_px)
    how = Solve(iterations=6, sigma_px=sigma)
    pushed = [bundle.solve(problem, _pushed(state, sign * PUSH), how)[0] for sign in (-1, 1)]
    below, above = (bundle.cost(problem, s, sigma) for s in pushed)
    noise = bundle.noise_scale(problem, state, floor=1e-3)
    return Profile(here=bundle.cost(problem, state, sigma), below=below, above=above, noise_ratio=noise / sigma)


def _pushed(state: State, step: float) -> State:
    """A longer lens sees the same approach as a longer way: t_z grows with f."""
    translation = state.translation.clone()
    translation[:, 2] *= math.exp(step)
    return replace(state, log_focal=state.log_focal + step, translation=translation)


def lens_shift(problem: Problem, state: State, fit: Fit, prior: tuple[float, float]) -> float:
    """The relative change of f if a lens that bends lines explains the flow better than a pinhole does; else 0.

    Flow through such a lens fits a pinhole of another focal length, closely and with a steep profile: before a barrel of 12 % f
    came out 47 % too long without any other sign. Without one, both bent pictures cost half as much again.
    """
    sigma = max(0.15, fit.sigma_px)
    how = Solve(iterations=8, focal=True, focal_prior=prior, sigma_px=sigma, smoothing=1e-4)
    found = []
    for bend in (-BEND, BEND):
        straight = unbent(problem, bend)
        solved = bundle.solve(straight, state, how)[0]
        found.append((bundle.cost(straight, solved, sigma), solved.focal))
    cost, focal = min(found)
    return abs(focal / state.focal - 1) if cost < 0.98 * bundle.cost(problem, state, sigma) else 0.0


def unbent(problem: Problem, bend: float) -> Problem:
    """What a pinhole would have seen, if a lens had drawn half the picture's long side in by this share (r³ term alone)."""
    half = max(problem.size) / 2

    def moved(points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        away = points - problem.center
        return problem.center + away * (1 + bend * (away / half).square().sum(-1, keepdim=True))

    return replace(problem, nodes=moved(problem.nodes), target=moved(problem.target))


def is_weak(state: State, problem: Problem, fine: Fit, bent: Profile | None) -> bool:
    """Not held by the cost, to 5 % as far as noise goes."""
    flat = bent is not None and (bent.lift < 0.002 or bent.rel_ci > 0.05)
    return not is_plausible(state.focal, problem.size) or CORRELATED * fine.focal_std > 0.1 or flat


def is_held(state: State, problem: Problem, bent: Profile | None) -> bool:
    """Whether a weak focal length is still worth more than a guess: the cost holds it to 12 %, however small the noise.

    Compression bends flow where it leaves no noise. Measured on simulated clips: 7 % off at most; less held ones up to three times.
    """
    return is_plausible(state.focal, problem.size) and (bent is None or (bent.lift >= 0.002 and bent.width <= HELD))


def is_plausible(focal_px: float, size: tuple[int, int]) -> bool:
    """Within 0.5 to 2 long sides: generated video collapsed to 14 degrees with no other alarm."""
    return 0.5 <= focal_px / max(size) <= 2
