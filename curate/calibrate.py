"""How good the gates are: true labels corrupted in controlled ways, and what each gate says of them.

For every score that a check may reject by:

* *good* are the true labels and those with one mild corruption; *bad* are those with one harmful corruption.
* Its **precision** at a bound is how many of the rejected are bad, if good and the bad of the kind it exists for are equally many.
* The bound for 95 % precision is the strictest that keeps it; the bound for 95 % recall the loosest that still rejects 95 % of that
  kind. Between the two any bound does, and the suggested one is their geometric mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from curate import measure
from curate.check import Side, limits
from curate.checks import Checks
from curate.corrupt import CORRUPTIONS, Corruption, changed
from shared.clip import AnnotatedClip

EXISTS_FOR = {
    "fb_ok": ("flow_noise",),
    "fb_ok_worst": ("flow_noise",),
    "rigid_flow_px": ("turn_jitter", "flow_noise"),
    "rigid_flow_worst_px": ("turn_jitter", "swapped_poses", "flow_noise"),
    "rigid_key_px": ("turn_jitter",),
    "rigid_outliers": ("turn_jitter",),
    "rigid_patches": ("missed_movers",),
    "edge_outliers": ("wide_edges",),
    "depth_ratio_1": ("scale_flicker",),
    "depth_ratio_4": ("scale_flicker",),
    "depth_ratio_8": ("scale_flicker",),
    "depth_ratio_worst": ("scale_flicker",),
    "scale_drift": ("scale_drift",),
    "sampson_px": ("turn_jitter",),
    "focal_drift": ("zoom",),
    "pose_anomaly": ("center_jitter",),
    "pose_jerk": ("center_jitter",),
    "sf_reproj_px": ("wrong_scene_flow",),
    "sf_static": ("leaking_scene_flow",),
}
"""Score -> the corruptions it is there to notice."""

BETWEEN = 3
"""Strengths tried between mild and harmful, evenly spaced in their logarithm."""


@dataclass(kw_only=True, eq=False)
class Observations:
    """Scores of true clips, of those with a mild corruption, and of those with a harmful one."""

    true: list[dict[str, float]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Of the true clips."""
    mild: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    harmful: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    between: dict[str, dict[float, list[dict[str, float]]]] = field(default_factory=dict)
    """Corruption -> strength -> scores, of strengths between mild and harmful."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One score's quality at the bound that the checks have, and the bounds it could have."""

    check: str
    score: str
    side: Side
    bound: float
    precision: float
    recall: float
    """Of the harmful corruptions it exists for."""
    true_kept: float
    """Share of untouched clips that it keeps."""
    mild_kept: float
    bound_for_precision: float | None
    bound_for_recall: float | None

    @property
    def suggested(self) -> float | None:
        a, b = self.bound_for_precision, self.bound_for_recall
        if a is None or b is None:
            return a
        stricter_first = a <= b if self.side == "above" else a >= b
        return float(np.sqrt(a * b)) if stricter_first and a * b > 0 else a


def observe(clips: Iterable[AnnotatedClip], seed: int = 0) -> Observations:
    """Every corruption of every clip, measured. Raises ValueError if a clip lacks a label that truth has."""
    found = Observations()
    for number, clip in enumerate(clips):
        if None in (clip.depth, clip.cameras, clip.flow, clip.motion):
            raise ValueError(f"{clip.id}: calibration asks for true depth, cameras, flow and motion")
        if clip.depth is not None and not clip.depth.valid.any():
            raise ValueError(f"{clip.id}: no pixel has a depth, calibration asks for true ones")
        found.true.append(measure.scores(clip))
        found.sources.append(clip.source)
        for place, corruption in enumerate(CORRUPTIONS):
            for strength, kept in _strengths(found, corruption):
                wrong = corruption.apply(clip, strength, np.random.default_rng([seed, number, place]))
                if changed(clip, wrong):
                    kept.append(measure.scores(wrong))
    if not found.true:
        raise ValueError("calibration asks for clips with truth, found none")
    return found


def _strengths(found: Observations, corruption: Corruption) -> list[tuple[float, list[dict[str, float]]]]:
    """(Strength, where its scores go), from mild to harmful."""
    name, harmful = corruption.name, found.harmful.setdefault(corruption.name, [])
    if corruption.mild is None:
        return [(corruption.harmful, harmful)]
    steps = np.geomspace(corruption.mild, corruption.harmful, BETWEEN + 2)[1:-1].tolist()
    between = found.between.setdefault(name, {})
    middle = [(strength, between.setdefault(strength, [])) for strength in steps]
    return [(corruption.mild, found.mild.setdefault(name, [])), *middle, (corruption.harmful, harmful)]


def rejected_from(found: Observations, corruption: Corruption, checks: Checks, share: float = 0.95) -> float | None:
    """The least of the tried strengths from which on this share of clips is rejected; None: not even the harmful one."""
    tried = {**found.between.get(corruption.name, {}), corruption.harmful: found.harmful.get(corruption.name, [])}
    least = None
    for strength in sorted(tried, reverse=True):
        if not tried[strength] or rejected_share(tried[strength], checks) < share:
            break
        least = strength
    return least


def gates(found: Observations, checks: Checks) -> list[Gate]:
    """Every bound that rejects, of scores that exist for some corruption."""
    return [_gate(found, *bound) for bound in _rejecting(checks) if bound[1] in EXISTS_FOR]


def recall_of(found: Observations, checks: Checks) -> dict[str, dict[str, float]]:
    """Corruption -> score -> share of its harmful clips that the score rejects; `any`: that some score does."""
    return {name: _rejected(rows, checks) for name, rows in found.harmful.items() if rows}


def rejected_share(rows: list[dict[str, float]], checks: Checks) -> float:
    """Share of clips that some bound rejects."""
    return _rejected(rows, checks)["any"]


def _rejected(rows: list[dict[str, float]], checks: Checks) -> dict[str, float]:
    hits: dict[str, np.ndarray] = {}
    for _, score, side, bound in _rejecting(checks):
        hits[score] = hits.get(score, np.zeros(len(rows), bool)) | _beyond(_values(rows, score), side, bound)
    hits["any"] = np.any(list(hits.values()), axis=0) if hits else np.zeros(len(rows), bool)
    return {score: float(hit.mean()) for score, hit in hits.items()}


def _rejecting(checks: Checks) -> list[tuple[str, str, Side, float]]:
    """(Check, score, side, bound) of every bound that rejects."""
    return [
        (name, score, side, bound)
        for name, check in checks
        if check is not None
        for score, limit in limits(check).items()
        for outcome, side, bound in limit.bounds()
        if outcome == "fail"
    ]


def _gate(found: Observations, check: str, score: str, side: Side, bound: float) -> Gate:
    mild = [row for rows in found.mild.values() for row in rows]
    good = _known(_values([*found.true, *mild], score))
    bad = _known(np.concatenate([_values(found.harmful.get(name, []), score) for name in EXISTS_FOR[score]]))
    recall, false = float(_beyond(bad, side, bound).mean()), float(_beyond(good, side, bound).mean())
    return Gate(
        check=check,
        score=score,
        side=side,
        bound=bound,
        precision=recall / (recall + false) if recall + false else 1.0,
        recall=recall,
        true_kept=1 - float(_beyond(_values(found.true, score), side, bound).mean()),
        mild_kept=1 - float(_beyond(_values(mild, score), side, bound).mean()),
        bound_for_precision=_strictest(good, bad, side),
        bound_for_recall=_quantile(bad, 0.95, side),
    )


def _strictest(good: np.ndarray, bad: np.ndarray, side: Side, precision: float = 0.95) -> float | None:
    """The bound nearest to the good that rejects at least 19 bad for each good, both equally many; None: there is none."""
    candidates = np.unique(np.concatenate((good, bad)))
    for bound in candidates if side == "above" else candidates[::-1]:
        hit, false = _beyond(bad, side, bound).mean(), _beyond(good, side, bound).mean()
        if hit and hit / (hit + false) >= precision:
            return float(bound)
    return None


def _quantile(bad: np.ndarray, recall: float, side: Side) -> float | None:
    """The loosest bound that rejects this share."""
    if not len(bad):
        return None
    part = np.sort(bad) if side == "above" else np.sort(bad)[::-1]
    lost = int((1 - recall) * len(part))
    return float(np.nextafter(part[lost], -np.inf if side == "above" else np.inf))


def _values(rows: list[dict[str, float]], score: str) -> np.ndarray:
    return np.array([row.get(score, np.nan) for row in rows], np.float64)


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _beyond(values: np.ndarray, side: Side, bound: float) -> np.ndarray:
    return values < bound if side == "below" else values > bound
