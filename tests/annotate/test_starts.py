"""Which of several solutions is believed, and what is tried where a mover was taken for the room."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_flow_ba import turn_deg

from annotate.cameras import bundle, estimate, focal, keyframes
from annotate.cameras.bundle import Fit, Problem, State
from annotate.cameras.estimate import Views
from annotate.cameras.focal import Profile
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows

SIZE, KEYS = (240, 320), 6


def way(per_key_m: tuple[float, float, float], yaw_deg: float, seed: int) -> State:
    """Keyframes along a line, turning, before a bumpy surface at about 1."""
    grid, nodes = keyframes.node_grid(SIZE, estimate.COARSE)
    k = torch.arange(KEYS, dtype=torch.float64)[:, None]
    turn = bundle.rotate(math.radians(yaw_deg) * k * torch.tensor([[0.3, 1.0, 0.1]], dtype=torch.float64))
    rough = torch.rand(KEYS, len(nodes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    d = bundle.neighbor_mean(0.2 + 1.6 * rough, grid)
    return State(
        rotation=turn,
        translation=k * torch.tensor([per_key_m], dtype=torch.float64),
        inverse_depth=d / d.median(),
        log_focal=torch.tensor(300.0, dtype=torch.float64).log(),
    )


@pytest.fixture
def room() -> State:
    return way((-0.06, 0.01, -0.01), 0.8, seed=0)


@pytest.fixture
def mover() -> State:
    return way((0.03, 0.05, -0.05), -0.6, seed=1)


@pytest.fixture
def views(room: State, mover: State) -> Views:
    """The room, and a mover over the right 40 % of the picture."""
    grid, nodes = keyframes.node_grid(SIZE, estimate.COARSE)
    edges = np.array([(a, b) for a in range(KEYS) for b in range(KEYS) if 1 <= abs(a - b) <= 3], np.int64)
    blank = torch.zeros(len(edges), len(nodes), 2, dtype=torch.float64)
    problem = Problem(
        nodes=nodes,
        grid=grid,
        edges=torch.from_numpy(edges),
        target=blank,
        weight=torch.ones(blank.shape[:2], dtype=torch.float64),
        size=SIZE,
    )
    seen, other = (-bundle.predict(problem, state)[0].mT for state in (room, mover))
    target = torch.where((nodes[:, 0] > 0.6 * SIZE[1])[:, None], other, seen)
    raw = Problem(**{**vars(problem), "target": target})
    pairs = PairFlows(np.zeros((KEYS, *SIZE, 3), np.uint8), Dis().load())
    return Views(pairs=pairs, keys=list(range(KEYS)), edges=edges, raw=raw, voted=raw, device="cpu")


def test_a_poor_fit_does_not_forgive_itself(views: Views, room: State, mover: State) -> None:
    poor = (replace(room, translation=0.95 * room.translation), Fit(sigma_px=4.0, cost=1.0))
    small, good = (mover, Fit(sigma_px=0.15, cost=0.0)), (room, Fit(sigma_px=0.15, cost=0.0))
    assert estimate.explained(views, *poor).area > estimate.explained(views, *small).area
    assert estimate.largest(views, [poor, small]).state is mover
    assert estimate.largest(views, [small, poor, good]).state is room


def test_behind_a_mover_the_room_is_found(views: Views, room: State, mover: State) -> None:
    of_mover = estimate.explained(views, mover, Fit(sigma_px=0.15, cost=0.0))
    others = list(estimate._rest(views, of_mover, None))
    found = estimate.largest(views, [(of_mover.state, of_mover.fit), *others])
    assert of_mover.area == pytest.approx(0.4, abs=0.1)
    assert found.area == pytest.approx(0.6, abs=0.1)
    pose, truth = (estimate.world_from_cam(s.cam_from_world().numpy()) for s in (found.state, room))
    assert turn_deg(pose, truth).max() < 0.1
    ahead, true_ahead = (p[1:, :3, 3] / np.linalg.norm(p[1:, :3, 3], axis=1, keepdims=True) for p in (pose, truth))
    assert (ahead * true_ahead).sum(1).min() > 0.999


@pytest.mark.parametrize(
    ("width", "noise", "focal_px", "weak", "held"),
    [
        (0.04, 1.0, 300.0, False, True),
        (0.08, 1.0, 300.0, True, True),
        (0.2, 1.0, 300.0, True, False),
        (0.15, 0.5, 300.0, True, False),  # small noise, and yet a wide valley
        (0.04, 1.0, 700.0, True, False),
    ],
)
def test_a_weak_focal_length_is_kept_while_the_cost_holds_it(
    views: Views, width: float, noise: float, focal_px: float, weak: bool, held: bool
) -> None:
    state = State.start(views.raw, KEYS, focal_px)
    lift = 0.01 * focal.PUSH**2 / width**2
    curve = Profile(here=0.5, below=0.5 + lift, above=0.5 + lift, noise_ratio=noise)
    assert curve.rel_ci == pytest.approx(width * noise)
    assert focal.is_weak(state, views.raw, Fit(sigma_px=0.15, cost=0.5, focal_std=0.001), curve) == weak
    assert focal.is_held(state, views.raw, curve) == held
