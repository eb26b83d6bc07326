"""A sweep's table and plot."""

from pathlib import Path
from typing import Any

import numpy as np

from shared import files

BETTER_HIGH = ("mask IoU", "d1.25 scaled")


def write(root: Path, results: list[dict[str, Any]]) -> None:
    """ROOT/table.md and ROOT/sweep.png, of the points that are done."""
    files.write_whole(str(root / "table.md"), (table(results) + "\n").encode())
    _plot(root / "sweep.png", results)


def table(results: list[dict[str, Any]]) -> str:
    """A row a point, seeds together: the mean, and ± half of what lies between the least and the largest."""
    names = _names(results)
    head = (
        "limits",
        "training clips",
        "seeds",
        *(f"{name} {'↑' if name in BETTER_HIGH else '↓'}" for name in names),
        "",
    )
    lines = [head, ("---",) * len(head)]
    for label, rows in _by_label(results).items():
        cells = [_cell([row["measures"][name] for row in rows if name in row["measures"]]) for name in names]
        note = rows[0].get("note", "")
        lines.append((label, str(rows[0]["clips"]), str(len(rows)), *cells, note))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {(max(values) - min(values)) / 2:.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def _plot(path: Path, results: list[dict[str, Any]]) -> None:
    """A panel a measure; a point a set of limits, its line from the least seed to the largest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it keeps global state and looks for a display

    groups = _by_label(results)
    names = ["training clips", *_names(results)]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * rows + 0.3 * max(map(len, groups)) / 4), layout="constrained")
    for panel, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, panel + 1)
        for place, rows_of in enumerate(groups.values()):
            values = [row["clips"] if panel == 0 else row["measures"].get(name) for row in rows_of]
            values = [value for value in values if value is not None]
            if values:
                axis.plot([place, place], [min(values), max(values)], color="tab:blue", alpha=0.4, linewidth=4)
                axis.plot(place, np.mean(values), "o", color="tab:blue")
        axis.set_title(
            name + ("" if panel == 0 else " (higher is better)" if name in BETTER_HIGH else " (lower is better)"),
            fontsize=8,
        )
        axis.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right", fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(axis="y", alpha=0.3)
    FigureCanvasAgg(figure)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def _names(results: list[dict[str, Any]]) -> list[str]:
    return list({name: None for row in results for name in row["measures"]})


def _by_label(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        found.setdefault(row["label"], []).append(row)
    return found
