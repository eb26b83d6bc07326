"""What a calibration found, as Markdown."""

from collections.abc import Iterable

from curate import calibrate
from curate.calibrate import Observations
from curate.checks import Checks
from curate.corrupt import CORRUPTIONS

_ERROR_HEAD = ("error", "mild", "harmful", "harmful rejected", "95 % rejected from", "mild kept", "by")
_GATE_HEAD = (
    "score",
    "rejects",
    "exists for",
    "precision",
    "recall",
    "untouched kept",
    "mild kept",
    "95 % precision from",
    "95 % recall up to",
)

CAUGHT = 0.5
"""A gate is named beside an error if it rejects at least this share of it."""


def page(found: Observations, checks: Checks, command: str) -> str:
    """The whole page."""
    recall = calibrate.recall_of(found, checks)
    missed = ", ".join(name for name, by in recall.items() if by["any"] < 0.95) or "none"
    mild = [row for rows in found.mild.values() for row in rows]
    kept = [_percent(1 - calibrate.rejected_share(rows, checks)) for rows in (found.true, mild)]
    return f"""# How good the gates are

Made by `{command}` from {len(found.true)} clips with exact truth{_between(found.sources)}. Their labels are corrupted one way at a
time: *mild* is what we still want to train on, *harmful* teaches something false. Pixels are at 720 wide.

Of untouched clips {kept[0]} are kept; of those with a mild error {kept[1]}.

## Which errors are caught

{_table(_ERROR_HEAD, _errors(found, checks, recall))}

*95 % rejected from* is the least strength, of {calibrate.BETWEEN} between mild and harmful and harmful itself, from which on 95 %
of the clips are rejected: what is weaker may pass. Not caught at 95 %: {missed}. A clip whose labels an error leaves as they were
(the order of a still camera's poses) is not counted.

## Each gate

Precision and recall are of the harmful errors that a score exists for, against untouched and mildly wrong clips in equal number.
Any bound between the one for 95 % precision (the strictest) and the one for 95 % recall (the loosest) does on these clips. The
bounds that ship lie between, nearer to the loose end, because real labels err in more ways than these.

{_table(_GATE_HEAD, _gates(found, checks))}
"""


def _between(sources: list[str]) -> str:
    """Which: a number of a simulated scene is all that it is made from."""
    names = sorted(set(sources))
    return f", {names[0]} to {names[-1]}" if names else ""


def _errors(found: Observations, checks: Checks, recall: dict[str, dict[str, float]]) -> Iterable[tuple[str, ...]]:
    for corruption in CORRUPTIONS:
        by = recall.get(corruption.name)
        if not found.harmful.get(corruption.name) or by is None:
            continue
        least = calibrate.rejected_from(found, corruption, checks)
        mild = found.mild.get(corruption.name)
        caught = sorted((-share, score) for score, share in by.items() if score != "any" and share >= CAUGHT)
        yield (
            corruption.name,
            corruption.what.format(corruption.mild) if corruption.mild is not None else "–",
            corruption.what.format(corruption.harmful),
            f"{_percent(by['any'])} of {len(found.harmful[corruption.name])}",
            "–" if least is None else corruption.what.format(least),
            _percent(1 - calibrate.rejected_share(mild, checks)) if mild else "–",
            ", ".join(score for _, score in caught) or "–",
        )


def _gates(found: Observations, checks: Checks) -> Iterable[tuple[str, ...]]:
    for gate in calibrate.gates(found, checks):
        yield (
            gate.score,
            f"{gate.side} {gate.bound:g}",
            ", ".join(calibrate.EXISTS_FOR[gate.score]),
            _percent(gate.precision),
            _percent(gate.recall),
            _percent(gate.true_kept),
            _percent(gate.mild_kept),
            _number(gate.bound_for_precision),
            _number(gate.bound_for_recall),
        )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
