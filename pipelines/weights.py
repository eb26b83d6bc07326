"""`worldreel weights list|fetch|check`: the published networks a recipe needs, and whether this machine has them whole."""

from pathlib import Path
from typing import Any

from annotate import weights
from annotate.weights import HasNetworks, Network
from shared.knobs import Knobs


def list_rows(recipe: Knobs) -> list[dict[str, Any]]:
    """A row for each network: which knob needs it, what it is, its terms, and where it lies (None: nowhere yet)."""
    return [_row(knob, network, weights.find(network)) for knob, _, network in weights.needed(recipe)]


def fetch(recipe: Knobs) -> list[dict[str, Any]]:
    """Rows of all networks, downloaded where missing.

    Raises ValueError if terms are not accepted in the recipe (then nothing is downloaded), or the hub does not answer.
    """
    needed = list(weights.needed(recipe))
    for knob, annotator, network in needed:
        _accepted(knob, annotator, network)
    return [_row(knob, network, weights.get(network)) for knob, _, network in needed]


def check(recipe: Knobs) -> list[dict[str, Any]]:
    """Rows of all networks, if every file is here and has exactly the keys and shapes of its network.

    Raises ValueError naming each that is missing or differs.
    """
    rows, problems = [], []
    for knob, _, network in weights.needed(recipe):
        path = weights.find(network)
        if path is None:
            problems.append(
                f"{network.name} is not on this machine: run `worldreel weights fetch` or put it at {network.place}"
            )
            continue
        rows.append(_row(knob, network, path))
        try:
            weights.check(network, path)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """A block for each network, for a person."""
    for row in rows:
        print(f"{row['name']}  ({row['knob']}; {row['megabytes']:g} MB; {row['licence']})")
        print(f"  from  {row['source']} {row['file']} at {row['revision'] or 'any revision'}")
        print(f"  here  {row['path'] or 'not yet; it belongs at ' + row['place']}")
    if not rows:
        print("this recipe needs no weights")


def _accepted(knob: str, annotator: HasNetworks, network: Network) -> None:
    if network.notice and not annotator.accept_licence:
        raise ValueError(f"{network.notice} Set {knob}.accept_licence=true if that suits you.")


def _row(knob: str, network: Network, path: Path | None) -> dict[str, Any]:
    return {
        "knob": knob,
        "name": network.name,
        "source": network.source,
        "file": network.file,
        "revision": network.revision,
        "megabytes": round((path.stat().st_size if path else network.num_bytes) / 1e6, 1),
        "licence": network.licence,
        "path": str(path) if path else None,
        "place": str(network.place),
    }
