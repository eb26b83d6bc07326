"""Which frames carry depth in the bundle adjustment, and which pairs of them are compared.

Pixel constants hold for a long side of about 320; the caller works at that size.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from annotate.cameras.bundle import Problem
from annotate.flow.pairs import PairFlows

FEWEST, MOST = 8, 36
"""Keyframes of a clip, frames permitting."""


LEAST_PX = 24
"""Of the short side, for flow at reduced size."""


def node_grid(size: tuple[int, int], long_side_nodes: int) -> tuple[tuple[int, int], Float[Tensor, "N 2"]]:
    """A grid of blocks, as square as the size allows, and their centers (u, v) in row order."""
    height, width = size
    block = max(size) / long_side_nodes
    rows, columns = max(round(height / block), 2), max(round(width / block), 2)
    v, u = torch.meshgrid(
        (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows,
        (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns,
        indexing="ij",
    )
    return (rows, columns), torch.stack((u, v), -1).view(-1, 2)


def choose(pairs: PairFlows) -> list[int]:
    """First, last, and frames in between about 0.025 of the long side of median flow apart."""
    num_frames, long_side = len(pairs.rgb), max(pairs.size)
    _, nodes = node_grid(pairs.size, 80)
    keys, t = [0], 1
    while t < num_frames:
        flow, confidence, _ = pairs.at_nodes(np.array([[keys[-1], t]]), nodes)
        moved = flow[0].norm(dim=-1)[confidence[0] > 0.5] / long_side
        near = len(moved) >= 0.55 * len(nodes) and moved.median() <= 0.04 and moved.quantile(0.8) <= 0.1
        if near or t == keys[-1] + 1:
            t += 1
        if not near:
            keys.append(t - 1)
    if len(keys) > 1 and keys[-1] == num_frames - 2:
        keys.pop()
    if keys[-1] != num_frames - 1:
        keys.append(num_frames - 1)
    if not FEWEST <= len(keys) <= MOST:
        keys = _evenly(keys if len(keys) > MOST else list(range(num_frames)), MOST if len(keys) > MOST else FEWEST)
    return keys


def around(keys: list[int], t: int) -> list[int]:
    """Places of the keyframes a frame is compared with: the three nearest; for a keyframe, all it has edges to.

    Flow from the one before is known since `choose`. Two give noisy depth, four cost half as much flow again.
    """
    after = int(np.searchsorted(keys, t))
    if keys[after] != t:
        outer = [k for k in (after - 2, after + 1) if 0 <= k < len(keys)]
        return [after - 1, after, *sorted(outer, key=lambda k: abs(keys[k] - t))[:1]]
    return [k for k in range(max(after - 3, 0), min(after + 4, len(keys))) if k != after]


def _evenly(values: list[int], count: int) -> list[int]:
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in places]


def make_problem(
    pairs: PairFlows, keys: list[int], edges: Int64[np.ndarray, "E 2"], long_side_nodes: int, device: str = "cpu"
) -> Problem:
    """What the flows of these edges say at the nodes; confidence times the texture of the node, pixel by pixel."""
    grid, nodes = node_grid(pairs.size, long_side_nodes)
    frames = np.array(keys)[edges]
    flow, confidence, _ = pairs.at_nodes(frames, nodes)
    strength = torch.stack([texture(pairs.rgb[key], nodes) for key in keys])
    return Problem(
        nodes=nodes,
        grid=grid,
        edges=torch.from_numpy(edges),
        target=nodes + flow,
        weight=confidence * strength[torch.from_numpy(edges[:, 0])],
        size=pairs.size,
    ).to(device)


def texture(frame: np.ndarray, nodes: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
    """τ / (τ + 0.1 median τ) at the nodes, τ the least eigenvalue of the structure tensor: 0 on a blank wall."""
    gray = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1)
    least = torch.from_numpy(cv2.cornerMinEigenVal(gray, 9)).double().clamp(min=0)  # rounding goes below on flat ones
    column, row = nodes.long().unbind(-1)
    at_nodes = least[row, column]
    return at_nodes / (at_nodes + 0.1 * least.median() + 1e-12)


def temporal_edges(pairs: PairFlows, keys: list[int]) -> Int64[np.ndarray, "E 2"]:
    """Keyframes 1, 2 and 3 apart, both directions; the longer ones where over a quarter of the nodes is confident."""
    count = len(keys)
    edges = np.array([(a, a + gap) for gap in (1, 2, 3) for a in range(count - gap)], np.int64).reshape(-1, 2)
    edges = np.concatenate((edges, edges[:, ::-1]))
    _, nodes = node_grid(pairs.size, 20)
    _, confidence, _ = pairs.at_nodes(np.array(keys)[edges], nodes)
    share = (confidence > 0.5).double().mean(1).numpy()
    apart = np.abs(edges[:, 0] - edges[:, 1])
    return edges[(apart == 1) | (share > 0.25)]


def loop_edges(pairs: PairFlows, keys: list[int]) -> Int64[np.ndarray, "E 2"]:
    """Keyframes at least 4 apart that see the same again: best first by flow at quarter size, confirmed at full size."""
    small = pairs.at_most(max(max(pairs.size) // 4, -(-LEAST_PX * max(pairs.size) // min(pairs.size))))
    apart = np.array([(a, b) for a in range(len(keys)) for b in range(a + 4, len(keys))], np.int64).reshape(-1, 2)
    _, nodes = node_grid(small.size, 20)
    flow, _, error = small.at_nodes(np.array(keys)[apart], nodes)
    good = ((error < 0.5).double().mean(1) > 0.6).numpy()
    moved = flow.norm(dim=-1).median(dim=1).values.numpy() / max(small.size) if len(apart) else np.zeros(0)
    taken: list[tuple[int, int]] = []
    for place in np.argsort(moved, kind="stable"):
        a, b = map(int, apart[place])
        if not good[place] or moved[place] >= 0.1 or not _is_new(a, b, taken):
            continue
        _, confidence, _ = pairs.at_nodes(np.array([[keys[a], keys[b]]]), node_grid(pairs.size, 20)[1])
        if confidence.mean() >= 0.5:
            taken.append((a, b))
    both = taken + [(b, a) for a, b in taken]
    return np.array(both, np.int64).reshape(-1, 2)


def _is_new(a: int, b: int, taken: list[tuple[int, int]]) -> bool:
    """At most three loops a keyframe, and none beside one that is there."""
    crowded = any(sum(k in pair for pair in taken) >= 3 for k in (a, b))
    return not crowded and all(abs(a - c) + abs(b - d) >= 3 for c, d in taken)
