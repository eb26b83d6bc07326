"""`worldreel ablate`: the paper's ablation at a recipe's size. Every arm is an ordinary training run, measured on held-out clips.

Held-out clips have labels, so what an arm decodes of them, from the clean latent and from behind noise, is measured against those;
and from each clip's first frame one is generated, whose pixels the annotators judge, as in the paper. Finished arms are not done
again.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import yaml

from pipelines import model_evaluation, training
from pipelines.chain import Chain
from pipelines.recipes import AnnotateRecipe
from pipelines.work import Clock
from shared import files
from shared.knobs import dump, load
from train.recipe import TrainRecipe

if TYPE_CHECKING:
    from train.sample import Batch
else:
    Batch = Any  # torch stays unloaded until an arm is trained

Run = tuple[str, int]
"""An arm and a seed."""
Runs = Mapping[Run, TrainRecipe]
Measures = dict[str, float]

COLUMNS = {
    "L rgb": "diffusion_rgb",
    "L gm": "diffusion_geometry",
    "logRMSE clean": "clean depth log-RMSE scaled",
    "logRMSE": "noisy depth log-RMSE scaled",
    "δ1.25": "noisy d1.25 scaled",
    "position": "noisy camera position",
    "angle °": "noisy camera angle",
    "flow moving": "noisy scene flow moving",
    "flow all": "noisy scene flow all",
    "mask IoU": "noisy mask IoU",
    "d.d.": "made d.d.",
    "object d.d.": "made object d.d.",
    "first logRMSE": "made first depth log-RMSE",
    "judged logRMSE": "made log_rmse",
    "judged δ1.25": "made delta_1.25",
    "judged ATE": "made ate",
    "judged RRE °": "made rre_deg",
    "length": "made length",
    "rotation °": "made rotation_deg",
}
"""The table: two halves against the labels of held-out clips, and one of generated clips."""
RESULT = "ablation.json"
NOTHING = "(nothing learned)"
"""The row of a constant depth, a camera that stands still and a world that does."""


def ablate(
    out: str,
    to: str,
    recipe: TrainRecipe,
    arms: Sequence[str],
    seeds: Sequence[int],
    annotators: AnnotateRecipe,
    *,
    clips: int,
    steps: int,
    at_once: int = 1,
) -> dict[str, Any]:
    """Train and measure every arm with every seed; writes `to`/ablation.md, .json and .png and returns what the JSON holds.

    `at_once` runs go side by side, each a process of its own: small models leave a GPU idle. The table grows as they end.
    Raises ValueError for an unknown arm, and where nothing is held out.
    """
    from train import ablation, evaluate

    runs = {(arm, seed): ablation.recipe_of(recipe, arm, seed) for seed in seeds for arm in arms}
    still = evaluate.averaged([ablation.nothing(batch) for batch in _held_out(out, recipe, clips)])
    rows: list[dict[str, Any]] = [{"arm": NOTHING, "seed": None, "measures": still}]
    order = sorted(runs, key=lambda run: (run[1], len(runs[run].phases)))
    todo = {run: partial(_one, out, Path(to), runs, run, annotators, clips, steps) for run in order}
    for (arm, seed), measures in _at_once(runs, todo, at_once):
        rows.append({"arm": arm, "seed": seed, "measures": measures})
        _write(Path(to), rows, (NOTHING, *arms), clips)
    print(Path(to, "ablation.md").read_text())
    return {"rows": rows}


def _at_once(runs: Runs, todo: Mapping[Run, Callable[[], Measures]], number: int) -> Iterator[tuple[Run, Measures]]:
    """Each run with its measures, when it has them. A run that can begin where another ends waits for that one."""
    if number == 1:
        yield from ((run, one()) for run, one in todo.items())
        return
    from train import ablation

    waiting, under_way = list(todo), dict[Future[Measures], Run]()
    with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:
        while waiting or under_way:
            unfinished = {*waiting, *under_way.values()}
            for run in list(waiting):
                if not any(ablation.begins_with(runs[run], runs[other]) for other in unfinished):
                    waiting.remove(run)
                    under_way[pool.submit(todo[run])] = run
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()


def _one(out: str, to: Path, runs: Runs, run: Run, annotators: AnnotateRecipe, clips: int, steps: int) -> Measures:
    """Trains one arm with one seed, as far as it is not, and measures it."""
    import torch

    from train import ablation, evaluate, loop, models

    recipe, folder = runs[run], to / _name(run)
    if (known := _finished(folder, recipe, clips, steps)) is not None:
        return known
    _go_on_from(folder, recipe)
    batches = _held_out(out, recipe, clips)
    outcome = loop.train(recipe, out, str(folder))
    print(f"{folder.name}: {outcome.message}")
    if not outcome.finished:
        raise SystemExit(training.STOPPED)
    built, decoder = models.load(folder / "model"), ablation.has_decoder(recipe)
    built.to("cuda" if torch.cuda.is_available() else "cpu")
    chain, each = Chain(annotators, threads=1), []
    for index, batch in enumerate(batches):
        made = ablation.continued(built, batch, steps=steps, seed=index)
        training.keep(made, str(folder / "generated"))
        seen = model_evaluation.judged(made, chain(model_evaluation.pixels(made), Clock()))["measures"]
        if decoder:
            seen["first depth log-RMSE"] = ablation.first_depth_error(made, batch)
        else:
            seen = {name: value for name, value in seen.items() if name in model_evaluation.QUALITY}
        measures = ablation.held_out(built, batch, index, decoder=decoder)
        each.append(measures | {f"made {name}": value for name, value in seen.items()})
    means = evaluate.averaged(each)
    record = {"recipe": dump(recipe), "clips": clips, "steps": steps, "measures": means, "each": each}
    if decoder:
        pictures = [ablation.maps(built, batch) for batch in batches[:: max(1, len(batches) // 4)][:4]]
        cv2.imwrite(str(folder / "maps.png"), np.concatenate(pictures)[..., ::-1])
    files.write_whole(str(folder / RESULT), json.dumps(record, indent=1).encode())
    return means


def _name(run: Run) -> str:
    return f"{run[0]}-{run[1]}"


def _held_out(out: str, recipe: TrainRecipe, clips: int) -> list[Batch]:
    """The test split's clips, each a batch of one."""
    from train import reader
    from train.stages import LABELS
    from train.stream import Stream, read_selection

    try:
        stream = Stream(read_selection(out), seed=0, batch=1, sizes=recipe.sizes, splits=("test",))
    except ValueError as error:
        raise ValueError(f"{out}: nothing to measure on in the test split ({error}); curate with splits.test") from None
    count = min(clips, stream.table.num_rows)
    return [reader.read(stream, out, LABELS, recipe.reading, [position]).batch for position in range(count)]


def _finished(folder: Path, recipe: TrainRecipe, clips: int, steps: int) -> dict[str, float] | None:
    """What an earlier call measured. Raises ValueError if that was something else."""
    path = folder / RESULT
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if (record["recipe"], record["clips"], record["steps"]) != (dump(recipe), clips, steps):
        raise ValueError(f"{path}: was measured under another recipe, clips or steps; take another folder")
    return record["measures"]


def _go_on_from(folder: Path, recipe: TrainRecipe) -> None:
    """A new run begins where a finished one of the same table ends whose stages are its own first stages: they would give the same
    weights."""
    from train import ablation

    if (folder / "checkpoints").exists():
        return
    done = {path.parent: load(TrainRecipe, _recipe(path)) for path in folder.parent.glob(f"*/{RESULT}")}
    known = {path: other for path, other in done.items() if ablation.begins_with(recipe, other)}
    if known:
        path = max(known, key=lambda one: len(known[one].phases))
        aside = folder / "checkpoints.partial"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(path / "checkpoints", aside)
        aside.rename(folder / "checkpoints")


def _recipe(result: Path) -> dict[str, Any]:
    return yaml.safe_load(json.loads(result.read_text())["recipe"])


def _write(to: Path, rows: Sequence[Mapping[str, Any]], arms: Sequence[str], clips: int) -> None:
    """The means over seeds, with half of their range where there are several."""
    by_arm = {arm: [row["measures"] for row in rows if row["arm"] == arm] for arm in arms}
    lines = [f"|arm|{'|'.join(COLUMNS)}|", "|---" * (len(COLUMNS) + 1) + "|"]
    for arm, found in by_arm.items():
        if found:
            cells = (_cell([one[name] for one in found if name in one]) for name in COLUMNS.values())
            lines.append(f"|{arm}|{'|'.join(cells)}|")
    files.write_whole(str(to / "ablation.md"), ("\n".join(lines) + "\n").encode())
    files.write_whole(str(to / "ablation.json"), json.dumps({"clips": clips, "rows": list(rows)}, indent=1).encode())
    _plot(to / "ablation.png", by_arm)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.3f}" + (f" ±{half:.3f}" if len(values) > 1 else "")


def _plot(path: Path, by_arm: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """A panel a column, in the table's order, as far as some arm has a value: a bar an arm, a dot a seed, one color an arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it keeps global state and looks for a display

    shown = {
        title: values
        for title, name in COLUMNS.items()
        if any(values := [[one[name] for one in found if name in one] for found in by_arm.values()])
    }
    across = 5
    down = max(1, -(-len(shown) // across))
    figure = Figure(figsize=(3 * across, 2.5 * down), dpi=80, layout="constrained")
    for number, (title, values) in enumerate(shown.items()):
        axis = figure.add_subplot(down, across, number + 1)
        axis.set_title(title, fontsize=9)
        for place, of_arm in enumerate(values):
            if of_arm:
                axis.barh(place, np.mean(of_arm), alpha=0.5, color=f"C{place % 10}")
                axis.plot(of_arm, [place] * len(of_arm), "k.")
        first = number % across == 0
        axis.set_yticks(range(len(by_arm)), list(by_arm) if first else [""] * len(by_arm), fontsize=7)
        axis.set_ylim(len(by_arm) - 0.4, -0.6)  # rows as in the table, with a place for arms that have no value
        axis.set_xlim(left=0)
    with path.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
