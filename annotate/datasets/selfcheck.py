"""What a scene says about itself, before it is trusted: do its depth, cameras, tracks and flow agree with each other?

A few frames of a scene are enough to catch depth in another unit, an inverted pose, lengths of rays taken for z, or swapped
channels of flow. The figures become scores of every clip; a scene that fails is refused with its figure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from annotate.datasets.dataset import Field, Frame, Scene
from shared import camera, warp

MOST_REPROJECTION = 0.05
"""Relative depth error of static points seen in another frame; the median's where it is known what is static."""
MOST_TRACKS = 0.02
"""Median relative difference of depth and the tracks that are visible there."""
MOST_FLOW_PX, MOST_FLOW_SHARE = 0.1, 0.1
"""Distance of given flow from what a rigid world shows, in pixels or as a share of the flow; of the same pixels."""
LEAST_STILL = 0.25
"""Where nothing tells what moves, so many of a scene's pixels must agree that it stands still: a close-up's mover fills most."""
CLEARLY = 2.0
"""Another reading of the data must fit so many times better before the data set's own is refused."""
FITS = 0.01
"""So well must another reading fit the median point where some may move, lest movers fit it by chance."""
PLACES = 4
"""Where in a scene pairs of frames are compared."""
GAP_FRAMES = 8
_PIXELS = 8000
_FEWEST = 60

Reading = Callable[["Pair"], "Pair"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Static-looking pixels of one frame and another frame that may show them."""

    uv: Float[Tensor, "N 2"]
    z: Float[Tensor, " N"]
    world_from_here: Float[Tensor, "4 4"]
    world_from_there: Float[Tensor, "4 4"]
    here: Float[Tensor, " 4"]
    there: Float[Tensor, " 4"]
    z_there: Float[Tensor, "H W"]
    valid_there: Float[Tensor, "H W"]
    known_still: bool
    """The pixels can not move; False: some may."""

    @property
    def there_from_here(self) -> Float[Tensor, "4 4"]:
        return camera.invert(self.world_from_there) @ self.world_from_here


def check(scene: Scene) -> dict[str, float]:
    """The scene's scores. Raises ValueError with the figure if its truth contradicts itself."""
    numbers = np.concatenate(scene.facts.shots)
    scores: dict[str, float] = {}
    pairs = [_pair(scene, a, b) for a, b in _places(scene)]
    known = [pair for pair in pairs if pair is not None]
    if known:
        scores |= _reprojection(scene.facts.uri, known)
    tracks = _tracks(scene, numbers[np.linspace(0, len(numbers) - 1, min(PLACES, len(numbers))).astype(int)])
    if tracks is not None:
        scores["selfcheck_tracks"] = tracks
        if tracks > MOST_TRACKS:
            raise ValueError(
                f"{scene.facts.uri}: its depth is {tracks:.1%} away from its tracks (median), expected {MOST_TRACKS:.0%} at most"
            )
    flow = _flow(scene)
    if flow is not None:
        scores["selfcheck_flow_px"] = flow
    return scores


def _places(scene: Scene) -> list[tuple[int, int]]:
    """Frames to compare: some way apart, at several places."""
    found = []
    for shot in scene.facts.shots[:: max(1, len(scene.facts.shots) // PLACES)][:PLACES]:
        gap = min(GAP_FRAMES, len(shot) - 1)
        starts = np.linspace(0, len(shot) - 1 - gap, max(1, PLACES // len(scene.facts.shots))).astype(int)
        found += [(int(shot[s]), int(shot[s + gap])) for s in dict.fromkeys(starts.tolist()) if gap > 0]
    return found


def _pair(scene: Scene, a: int, b: int) -> Pair | None:
    here, there = scene.frame(a), scene.frame(b)
    if any(x is None for f in (here, there) for x in (f.z, f.world_from_cam, f.intrinsics)):
        return None
    assert here.z is not None
    assert there.z is not None
    picked, able = _still(here), _able(here)
    if picked.sum() < _FEWEST:
        return None
    seen = there.z > 0
    if able is not None and there.instances is not None:
        seen &= there.instances == 0
    uv = camera.pixel_centers(*here.z.shape)[picked]
    return Pair(
        uv=uv,
        z=_tensor(here.z)[picked],
        world_from_here=_tensor(here.world_from_cam),
        world_from_there=_tensor(there.world_from_cam),
        here=_tensor(here.intrinsics),
        there=_tensor(there.intrinsics),
        z_there=_tensor(there.z),
        valid_there=_tensor(seen),
        known_still=scene.facts.static or able is not None,
    )


def _still(frame: Frame) -> Tensor:
    """Evenly drawn pixels with depth that can not move, as a mask. Where all can move, all are taken."""
    assert frame.z is not None
    able, good = _able(frame), frame.z > 0
    if able is not None:
        good &= ~able
    every = max(1, round((good.sum() / _PIXELS) ** 0.5))
    grid = np.zeros_like(good)
    grid[every // 2 :: every, every // 2 :: every] = True
    return torch.from_numpy(good & grid)


def _able(frame: Frame) -> Bool[np.ndarray, "H W"] | None:
    """Pixels that can move; None where that is not told, or all can."""
    assert frame.z is not None
    if frame.instances is None or ((frame.z > 0) & (frame.instances == 0)).sum() < _FEWEST:
        return None
    return frame.instances > 0


def _reprojection(uri: str, pairs: list[Pair]) -> dict[str, float]:
    """How well static points are found again as given, and under other readings of the same numbers."""
    share = _share(pairs)
    given = _all_errors(pairs, _as_given)
    if given is None:
        return {}
    others = {name: _all_errors(pairs, reading) for name, reading in READINGS.items()}
    _refuse_another(uri, given, others, share, 1.0)
    if share != 0.5:
        _refuse_another(uri, given, others, 0.5, FITS)
    error = float(given.quantile(share))
    if error > MOST_REPROJECTION:
        raise ValueError(f"{_told(uri, error, share)}, expected {MOST_REPROJECTION:.0%} at most")
    shifted = {shift: _all_errors(pairs, _shifted(shift)) for shift in (-0.5, 0.0, 0.5)}
    halves = {shift: np.inf if errors is None else float(errors.quantile(share)) for shift, errors in shifted.items()}
    return {
        "selfcheck_reprojection": error,
        "selfcheck_half_pixel_px": min(halves, key=lambda shift: (halves[shift], abs(shift))),
    }


def _refuse_another(
    uri: str, given: Float[Tensor, " M"], others: Mapping[str, Float[Tensor, " _"] | None], share: float, most: float
) -> None:
    """Raises ValueError if another reading fits clearly better than what is given, and better than `most`.

    Of the point that this share of all agree better than.
    """
    error = float(given.quantile(share))
    errors = ((float(of.quantile(share)), name) for name, of in others.items() if of is not None)
    best, name = min(errors, default=(np.inf, ""))
    if error > CLEARLY * best + 0.003 and best < most:
        raise ValueError(f"{_told(uri, error, share)}, and {best:.1%} if {name}")


def _told(uri: str, given: float, share: float) -> str:
    return f"{uri}: static points of one frame are {given:.1%} away from the depth of another ({_of_which(share)})"


def _all_errors(pairs: list[Pair], reading: Reading) -> Float[Tensor, " M"] | None:
    """Over all pairs |z found - z expected| / z expected, for points that land in view and are not hidden; None: too few do."""
    found = torch.cat([_errors(reading(pair)) for pair in pairs])
    asked = sum(len(pair.z) for pair in pairs)
    return found if len(found) >= max(_FEWEST, 0.1 * asked) else None


def _share(pairs: list[Pair]) -> float:
    return 0.5 if all(pair.known_still for pair in pairs) else LEAST_STILL


def _of_which(share: float) -> str:
    return "median" if share == 0.5 else f"the best {LEAST_STILL:.0%}"


def _errors(pair: Pair) -> Float[Tensor, " M"]:
    p_there = camera.transform(pair.there_from_here, camera.unproject(pair.uv, pair.z, pair.here))
    ahead = p_there[:, 2] > 1e-6
    uv = camera.project(torch.where(ahead[:, None], p_there, torch.ones_like(p_there)), pair.there)
    ahead &= warp.in_bounds(uv, *pair.z_there.shape)
    inverse = torch.where(pair.z_there > 0, 1 / pair.z_there.clamp(min=1e-9), 0.0)
    found, valid = warp.sample(torch.stack((inverse, pair.valid_there), -1), uv[ahead]).unbind(-1)
    return (1 / found[valid > 0.999] / p_there[ahead, 2][valid > 0.999] - 1).abs()


def _as_given(pair: Pair) -> Pair:
    return pair


def _with(pair: Pair, **changes: Tensor) -> Pair:
    return replace(pair, **changes)


def _inverted(pair: Pair) -> Pair:
    here, there = camera.invert(pair.world_from_here), camera.invert(pair.world_from_there)
    return _with(pair, world_from_here=here, world_from_there=there)


def _scaled(factor: float) -> Reading:
    return lambda pair: _with(pair, z=pair.z * factor, z_there=pair.z_there * factor)


def _rays(pair: Pair) -> Pair:
    def slant(uv: Tensor, intrinsics: Tensor) -> Tensor:
        return camera.unproject(uv, torch.ones_like(uv[..., 0]), intrinsics).norm(dim=-1)

    height, width = pair.z_there.shape
    grid = camera.pixel_centers(height, width)
    return _with(pair, z=pair.z / slant(pair.uv, pair.here), z_there=pair.z_there / slant(grid, pair.there))


def _shifted(shift_px: float) -> Reading:
    """Depth drawn half a pixel off, to the left or to the right, in the other frame."""

    def reading(pair: Pair) -> Pair:
        center = torch.tensor([0.0, 0.0, shift_px, shift_px], dtype=torch.float64)
        return _with(pair, here=pair.here + center, there=pair.there + center)

    return reading


READINGS: dict[str, Reading] = {
    "its poses are inverted": _inverted,
    "its depth is ten times too large for its poses": _scaled(0.1),
    "its depth is ten times too small for its poses": _scaled(10.0),
    "its depth is a hundred times too large for its poses": _scaled(0.01),
    "its depth is a hundred times too small for its poses": _scaled(100.0),
    "its depth is the length of rays": _rays,
}


def _tracks(scene: Scene, numbers: np.ndarray) -> float | None:
    """Median over visible tracks of |z(u) - z_track| / z_track; None without tracks."""
    tracks = scene.tracks(numbers)
    if tracks is None:
        return None
    errors = []
    for t, number in enumerate(numbers):
        frame = scene.frame(int(number))
        if frame.z is None or frame.world_from_cam is None or frame.intrinsics is None:
            return None
        good = tracks.visible[t] & tracks.valid[t]
        errors.append(_track_errors(frame, tracks.p_world[t][good]))
    found = np.concatenate(errors)
    return float(np.median(found)) if len(found) >= _FEWEST else None


def _track_errors(frame: Frame, p_world: Float64[np.ndarray, "N 3"]) -> np.ndarray:
    """As the pixel shows it, or as it is between pixels (exact on planes; a floor's depth changes by percents within a pixel)."""
    assert frame.z is not None
    p_cam = camera.transform(camera.invert(_tensor(frame.world_from_cam)), torch.from_numpy(p_world))
    p_cam = p_cam[p_cam[:, 2] > 1e-6]
    uv = camera.project(p_cam, _tensor(frame.intrinsics))
    inside = warp.in_bounds(uv, *frame.z.shape)
    uv, expected = uv[inside], p_cam[inside, 2]
    z = _tensor(frame.z)
    nearest = warp.sample(z[..., None], uv, mode="nearest")[:, 0]
    inverse, known = warp.sample(torch.stack((1 / z.clamp(min=1e-9), (z > 0).double()), -1), uv).unbind(-1)
    off, off_between = ((found - expected).abs() / expected for found in (nearest, 1 / inverse))
    return torch.where(known > 0.999, torch.minimum(off, off_between), off)[nearest > 0].numpy()


def _flow(scene: Scene) -> float | None:
    """Distance in pixels of given flow from a rigid world's, on what can not move. Raises ValueError if it is too large."""
    found: list[tuple[Tensor, Tensor]] = []
    pairs: list[Pair] = []
    for shot in scene.facts.shots[:PLACES]:
        for s in dict.fromkeys(np.linspace(0, max(len(shot) - 2, 0), 2).astype(int).tolist()):
            if len(shot) > 1 and (field := scene.flow(int(shot[s]), int(shot[s + 1]))) is not None:
                pair = _pair(scene, int(shot[s]), int(shot[s + 1]))
                if pair is not None:
                    found.append(_both(scene.frame(int(shot[s])), field, pair))
                    pairs.append(pair)
    if not found:
        return None
    given, rigid = (torch.cat(flows) for flows in zip(*found))
    if len(given) < _FEWEST:
        return None
    error = float((given - rigid).norm(dim=-1).quantile(_share(pairs)))
    length = float(rigid.norm(dim=-1).median())
    told = f"{scene.facts.uri}: its flow is {error:.2f} px away from what its depth and cameras show ({_of_which(_share(pairs))})"
    if error > max(MOST_FLOW_PX, MOST_FLOW_SHARE * length):
        raise ValueError(f"{told}, expected {max(MOST_FLOW_PX, MOST_FLOW_SHARE * length):.2f} at most")
    return error


def _both(frame: Frame, field: Field, pair: Pair) -> tuple[Tensor, Tensor]:
    """Given and rigid flow of the pair's pixels."""
    picked = _still(frame)
    known = torch.from_numpy(field.valid)[picked]
    p_there = camera.transform(pair.there_from_here, camera.unproject(pair.uv, pair.z, pair.here))
    known &= p_there[:, 2] > 1e-6
    rigid = camera.project(torch.where(known[:, None], p_there, torch.ones_like(p_there)), pair.there) - pair.uv
    return _tensor(field.values)[picked][known], rigid[known]


def _tensor(array: np.ndarray | None) -> Tensor:
    assert array is not None
    return torch.from_numpy(np.asarray(array, np.float64))
