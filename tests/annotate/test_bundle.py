"""The bundle adjustment's own arithmetic: derivatives against differences, the eliminated step against the full one."""

import math
from dataclasses import replace

import pytest
import torch

from annotate.cameras import bundle, epipolar, estimate, focal, keyframes
from annotate.cameras.bundle import Depths, Mixing, Problem, Solve, State

EDGES = torch.tensor([(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)])


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    _grid, nodes = keyframes.node_grid((24, 32), 5)
    return State(
        rotation=bundle.rotate(0.05 * torch.randn(3, 3, dtype=torch.float64)),
        translation=0.1 * torch.randn(3, 3, dtype=torch.float64),
        inverse_depth=0.5 + torch.rand(3, len(nodes), dtype=torch.float64),
        log_focal=torch.tensor(30.0, dtype=torch.float64).log(),
    )


@pytest.fixture
def problem(state: State) -> Problem:
    """What the state would see, and a little noise."""
    grid, nodes = keyframes.node_grid((24, 32), 5)
    blank = Problem(
        nodes=nodes,
        grid=grid,
        edges=EDGES,
        target=torch.zeros(len(EDGES), len(nodes), 2, dtype=torch.float64),
        weight=0.5 + torch.rand(len(EDGES), len(nodes), dtype=torch.float64),
        size=(24, 32),
    )
    seen = -bundle.predict(blank, state)[0].mT
    return Problem(**{**vars(blank), "target": seen + 0.1 * torch.randn_like(seen)})


def moved(state: State, step: torch.Tensor, depth_step: torch.Tensor) -> State:
    """The update as the module's head defines it, written out once more."""
    turn = torch.linalg.matrix_exp(bundle.cross_matrix(step[:-1].view(-1, 6)[:, 3:]))
    shift = step[:-1].view(-1, 6)[:, :3]
    return State(
        rotation=turn @ state.rotation,
        translation=(turn @ state.translation[..., None])[..., 0] + shift,
        inverse_depth=state.inverse_depth + depth_step,
        log_focal=state.log_focal + step[-1],
    )


def jacobian(problem: Problem, state: State) -> torch.Tensor:
    """Of all residuals by all unknowns (6 K + 1 camera columns, then K N depths), by central differences."""
    num_keys, num_nodes = state.inverse_depth.shape
    count = 6 * num_keys + 1 + num_keys * num_nodes

    def residual(unknowns: torch.Tensor) -> torch.Tensor:
        depth = unknowns[6 * num_keys + 1 :].view(num_keys, num_nodes)
        return bundle.predict(problem, moved(state, unknowns[: 6 * num_keys + 1], depth))[0].flatten()

    eye = 1e-6 * torch.eye(count, dtype=torch.float64)
    return torch.stack([(residual(-e) - residual(e)) / 2e-6 for e in eye], 1)


def dense_weight(problem: Problem, state: State, sigma: float) -> torch.Tensor:
    size = bundle.predict(problem, state)[0].square().sum(1)
    weight = problem.weight / (1 + size / sigma**2) / sigma**2
    return weight[:, None].expand(-1, 2, -1).flatten()


def mixed(depths: Depths) -> torch.Tensor:
    """All rows of what mixes cameras with depths, M x K N."""
    num_keys, width, num_nodes = depths.mixed.shape
    full = torch.zeros(6 * num_keys + 2, num_keys, num_nodes, dtype=torch.float64)
    for k in range(num_keys):
        for w in range(width):
            full[depths.mixing.columns[k, w], k] += depths.mixed[k, w]
    return full[:-1].flatten(1)


# all pairs; and such that keyframes have edges to one, two and none
@pytest.mark.parametrize("kept", [[True] * 6, [True, True, True, False, False, False]])
def test_normal_equations_are_those_of_numerical_derivatives(problem: Problem, state: State, kept: list[bool]) -> None:
    sigma, problem = 0.3, problem.only(torch.tensor(kept))
    normal = bundle.normal_equations(problem, state, sigma, Mixing.of(problem.edges, 3))
    j, w = jacobian(problem, state), dense_weight(problem, state, sigma)
    full, r = j.T @ (w[:, None] * j), bundle.predict(problem, state)[0].flatten()
    size = len(normal.gradient)
    assert normal.depths is not None
    torch.testing.assert_close(normal.camera, full[:size, :size], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(mixed(normal.depths), full[:size, size:], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(normal.depths.diagonal.flatten(), full.diagonal()[size:], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(normal.gradient, j.T[:size] @ (w * r), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(normal.depths.gradient.flatten(), j.T[size:] @ (w * r), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("kept", [[True] * 6, [True, True, True, True, False, False]])
def test_eliminating_depths_gives_the_step_of_the_full_system(problem: Problem, state: State, kept: list[bool]) -> None:
    problem = problem.only(torch.tensor(kept))
    normal = bundle.normal_equations(problem, state, 0.3, Mixing.of(problem.edges, 3))
    depths = normal.depths
    assert depths is not None
    columns = torch.arange(6, len(normal.gradient))
    step, depth_step, _ = bundle.solve_step(normal, columns, damping=1e-3)  # else the world's free scale is singular
    assert depth_step is not None
    damped = normal.camera + torch.diag(1e-3 * normal.camera.diagonal().clamp(min=1e-3) + 1e-6)
    full = torch.cat(
        (
            torch.cat((damped, mixed(depths)), 1),
            torch.cat((mixed(depths).T, torch.diag(depths.diagonal.flatten())), 1),
        )
    )[6:, 6:]
    right = torch.cat((normal.gradient, depths.gradient.flatten()))[6:]
    expected = torch.linalg.solve(full, right)
    torch.testing.assert_close(torch.cat((step[6:], depth_step.flatten())), expected, rtol=1e-7, atol=1e-9)
    assert (step[:6] == 0).all()


def test_depths_are_mixed_only_with_what_they_see(problem: Problem, state: State) -> None:
    """A chain of keyframes: what has no edge is left out, and depths that stay change nothing for the cameras."""
    chain = problem.only(torch.tensor([True, True, True, True, False, False]))
    mixing = Mixing.of(chain.edges, 3)
    poses = [[int(c) // 6 for c in row[row < 18][::6]] for row in mixing.columns]
    assert poses == [[0, 1], [1, 0, 2], [2, 1]]
    both = [bundle.normal_equations(chain, state, 0.3, which) for which in (mixing, None)]
    torch.testing.assert_close(both[0].camera, both[1].camera)
    step, depth_step, _ = bundle.solve_step(both[1], torch.arange(6, 19), 1e-6)
    expected = torch.linalg.solve(both[1].camera[6:, 6:], both[1].gradient[6:])
    torch.testing.assert_close(step[6:], expected, rtol=1e-3, atol=1e-5)
    assert depth_step is None


def test_solving_finds_the_cameras_that_made_the_flow(problem: Problem, state: State) -> None:
    seen = problem.target + bundle.predict(problem, state)[0].mT * -1
    exact = Problem(**{**vars(problem), "target": seen})
    start = moved(state, 0.01 * torch.randn(19, dtype=torch.float64), torch.zeros_like(state.inverse_depth))
    start = State(**{**vars(start), "rotation": _first(start.rotation, state), "log_focal": state.log_focal + 0.05})
    start.translation[0] = state.translation[0]
    how = Solve(iterations=60, focal=True, tolerance=0.0, smoothing=0.0, min_sigma_px=1e-3)
    found, fit = bundle.solve(exact, start, how)
    assert abs(float(found.log_focal - state.log_focal)) < 1e-3
    assert (found.rotation - state.rotation).abs().max() < 1e-3
    assert fit.sigma_px < 2e-3


def test_a_lens_that_bends_lines_is_found(problem: Problem, state: State) -> None:
    """Flow through a lens, fitted as a pinhole's: another lens would fit better. Flow without one: none would."""
    large = replace(state, log_focal=state.log_focal + math.log(10))
    seen = replace(problem, nodes=10 * problem.nodes, size=(240, 320))
    straight = replace(
        seen, target=seen.target * 0 - bundle.predict(replace(seen, target=seen.target * 0), large)[0].mT
    )
    prior = (math.log(300), 0.6)
    for curved in (False, True):
        through = focal.unbent(straight, -0.08) if curved else straight
        found, fit = bundle.solve(through, large, Solve(iterations=25, focal=True, focal_prior=prior))
        shift = focal.lens_shift(through, found, fit, prior)
        assert shift > 0.01 if curved else shift == 0


def test_bending_by_hand(problem: Problem) -> None:
    """The middle stays; the end of the long side moves by the share, which falls with the cube of the distance."""
    nodes = problem.nodes.clone()
    nodes[:4] = torch.tensor([[16.0, 12], [32, 12], [24, 12], [0, 12]], dtype=torch.float64)
    across = focal.unbent(replace(problem, nodes=nodes), 0.05).nodes[:4, 0]
    torch.testing.assert_close(across, torch.tensor([16, 32.8, 24.1, -0.8], dtype=torch.float64))


def _first(rotation: torch.Tensor, state: State) -> torch.Tensor:
    rotation = rotation.clone()
    rotation[0] = state.rotation[0]
    return rotation


def test_everything_stays_on_the_device(problem: Problem, state: State) -> None:
    """On `meta`, which holds shapes only and, as a GPU does, refuses to be mixed with the CPU."""
    there = problem.to("meta")
    start = State.start(there, len(state.rotation), 30.0)
    how = Solve(iterations=1, focal=True, focal_prior=(3.0, 0.5))
    mixing = Mixing.of(problem.edges, len(state.rotation))
    mixing = Mixing(columns=mixing.columns.to("meta"), place=mixing.place.to("meta"))
    normal = bundle._regularized(bundle.normal_equations(there, start, 0.3, mixing), there, start, how)
    columns = bundle._free_columns(len(state.rotation), how).to("meta")
    step, depth_step, _ = bundle.solve_step(normal, columns, how.damping)
    found = bundle._moved(start, step, depth_step, how.rescale)
    between = estimate._with_between(found, [0, 2, 4], [1, 3])
    static = epipolar.tally(there, there.weight, len(state.rotation))
    for tensor in (*vars(between).values(), static, epipolar.weighted(there, static).weight, between.cam_from_world()):
        assert tensor.is_meta
