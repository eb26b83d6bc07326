"""When a camera is still although most of the picture moves, and when it is not although much of it stands still."""

import numpy as np
import pytest
import torch

from annotate.cameras import degenerate, keyframes
from annotate.cameras.bundle import Problem
from annotate.cameras.degenerate import Evidence

SIZE = (240, 320)
GRID, NODES = keyframes.node_grid(SIZE, 20)


def seen(flow: np.ndarray) -> Problem:
    """One edge with this flow at all nodes, pixels to the right."""
    moved = torch.from_numpy(flow).flatten()[:, None] * NODES.new_tensor([1.0, 0.0])
    return Problem(
        nodes=NODES,
        grid=GRID,
        edges=torch.tensor([(0, 2)]),
        target=(NODES + moved)[None],
        weight=torch.ones(1, len(NODES), dtype=torch.float64),
        size=SIZE,
    )


@pytest.mark.parametrize(
    ("moves", "static"),
    [
        (np.s_[3:, 5:], True),  # a face that fills the right and the bottom of the picture
        (np.s_[2:13, 2:18], True),  # a hand with an object
        (np.s_[7:, :], False),  # a landscape below a sky
        (np.s_[:, :], False),
    ],
)
def test_a_still_border_is_a_still_camera(moves: tuple[slice, slice], static: bool) -> None:
    flow = np.zeros(GRID)
    flow[moves] = 5
    problem = seen(flow)
    assert degenerate.is_static(degenerate.median_flow(problem), degenerate.still_border(problem)) is static


def test_what_keeps_pace_does_not_make_the_camera_still() -> None:
    flow = np.full(GRID, 5.0)
    flow[4:13, 3:17] = 0
    problem = seen(flow)
    assert degenerate.median_flow(problem) == pytest.approx(5)
    assert degenerate.still_border(problem) == 0


@pytest.mark.parametrize(("turning", "flag"), [(0.95, "rotation_only"), (0.55, None)])
def test_what_turns_with_the_camera_must_be_about_all(turning: float, flag: str | None) -> None:
    found = Evidence(
        flow_px=5.0,
        still_border=0.0,
        confident=0.9,
        rotation_px=0.02,
        full_px=0.02,
        spread_px=20.0,
        agreeing=0.98,
        turning=turning,
        sigma_px=0.15,
        cycle_px=0.1,
    )
    assert degenerate.motion_flag(found) == flag
