"""What a run leaves for people: metrics.jsonl, loss.png, events.jsonl, a progress bar; TensorBoard and W&B where installed."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from train.recipe import Logging

log = logging.getLogger(__name__)

Record = dict[str, float | int | str]
SMOOTHING = 0.9


class Sums:
    """Sums of scalars that stay on their device until they are asked for: reading one would stop a GPU."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self) -> dict[str, float]:
        """The sums since the last time."""
        found = {name: float(value) for name, value in self._sums.items()}
        self._sums.clear()
        return found


class Log:
    """The run's files. Only the first rank writes; for the others every call is empty."""

    def __init__(self, run: Path, knobs: Logging, *, first_step: int, last_step: int, writes: bool) -> None:
        self.run, self.writes = run, writes
        self._extras: list[Any] = []
        self._bar: Progress | None = None
        if not writes:
            return
        run.mkdir(parents=True, exist_ok=True)
        if knobs.tensorboard:
            self._extras.extend(_tensorboard(run))
        if knobs.wandb:
            self._extras.extend(_wandb(run, knobs.wandb))
        drop_after(run / "metrics.jsonl", first_step)
        self._metrics, self._events = (run / "metrics.jsonl").open("a"), (run / "events.jsonl").open("a")
        if knobs.bar:
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task("training", total=last_step, completed=first_step)

    def metrics(self, step: int, record: Record) -> None:
        """One line a logged step; `step` counts optimizer steps that are done."""
        if not self.writes:
            return
        self._metrics.write(json.dumps({"step": step, **record}) + "\n")
        self._metrics.flush()
        for write in self._extras:
            write(step, record)

    def event(self, kind: str, **facts: Any) -> None:
        """Something that a person may want to find again: a corrupt sample, a checkpoint, a skipped step."""
        if not self.writes:
            return
        self._events.write(json.dumps({"time": round(time.time(), 3), "event": kind, **facts}) + "\n")
        self._events.flush()

    def step(self, step: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)

    def close(self) -> None:
        """Draws the loss and closes the files."""
        if not self.writes:
            return
        if self._bar is not None:
            self._bar.stop()
        self._metrics.close()
        self._events.close()
        plot(self.run / "metrics.jsonl", self.run / "loss.png")


def drop_after(path: Path, step: int) -> None:
    """Forgets what was logged past the checkpoint that is resumed: those steps are done again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if (record := _record(line)) is not None and int(record["step"]) <= step]
    if len(kept) < len(lines):
        aside = path.with_suffix(".partial")
        aside.write_text("".join(f"{line}\n" for line in kept))
        aside.replace(path)


def read(path: Path) -> list[Record]:
    """The records of a metrics file; a last line that a kill cut short is passed over."""
    return [record for line in path.read_text().splitlines() if (record := _record(line)) is not None]


def plot(metrics: Path, png: Path) -> None:
    """A panel for each phase: its loss terms over steps, thin as logged and thick smoothed, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it keeps global state and looks for a display

    phases = _curves(read(metrics))
    figure = Figure(figsize=(max(5.0, 4.5 * len(phases)), 5), layout="constrained")
    panels = figure.subplots(1, max(1, len(phases)), squeeze=False)[0]
    for panel, (phase, curves) in zip(panels, phases.items()):
        for number, (name, points) in enumerate(sorted(curves.items())):
            steps, values = zip(*points)
            color = "black" if name == "total" else f"C{number % 10}"
            panel.plot(steps, values, linewidth=0.6, alpha=0.4, color=color)
            panel.plot(steps, _smooth(values), linewidth=1.8, color=color, label=name)
        panel.set(xlabel="step", ylabel="loss", title=phase, yscale="log")
        panel.legend(fontsize="small")
    aside = png.with_name(f".{png.name}.partial")
    with aside.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    os.replace(aside, png)


def _curves(records: list[Record]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Phase -> loss term -> (step, value). Losses by noise level stay in metrics.jsonl: they would hide the terms."""
    phases: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        for name, value in record.items():
            kind, _, term = name.partition(".")
            if kind == "loss" and "." not in term and isinstance(value, float) and value > 0:
                curves = phases.setdefault(str(record.get("phase", "")), {})
                curves.setdefault(term, []).append((int(record["step"]), value))
    return phases


def _smooth(values: tuple[float, ...]) -> list[float]:
    """An exponential mean over a tenth of the curve at most: a short one would hang on its first value, far above the rest."""
    kept = min(SMOOTHING, 1 - min(1.0, 10 / len(values)))
    smooth, weight, total = list[float](), 0.0, 0.0
    for value in values:
        total, weight = kept * total + value, kept * weight + 1
        smooth.append(total / weight)
    return smooth


def _record(line: str) -> Record | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )


def _tensorboard(run: Path) -> list[Any]:
    """A writer of scalars, or nothing where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    writer = SummaryWriter(str(run / "tensorboard"))

    def write(step: int, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                writer.add_scalar(name.replace(".", "/"), value, step)
        writer.flush()

    return [write]


def _wandb(run: Path, project: str) -> list[Any]:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("log.wandb names a project, but W&B is not installed: pip install wandb") from None
    session = wandb.init(project=project, name=run.name, dir=str(run), resume="allow")

    def write(step: int, record: Record) -> None:
        session.log(dict(record), step=step)

    return [write]
