"""`worldreel sweep`: the paper's open check. Confidence thresholds -> selection -> short training -> metrics on clips held out.

Every point is a folder: its selection, its run (as of `worldreel train`) and, when it is done, its result. Killed, the same
command goes on; what is done is not done again. All points are measured on the same clips, which no point trains on.
"""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from curate import select
from curate.checks import Checks
from curate.recipe import CurateRecipe, Report, Splits
from curate.strictness import tightened
from pipelines import sweep_page, training
from shared import files
from shared.index import SELECTION
from shared.knobs import Knobs, dump, load
from train.recipe import TINY, Logging, Phase, TrainRecipe
from train.stages import Decoder

SHORT = TINY.model_copy(
    update={
        "splits": ("train",),
        "phases": (Phase(stage=Decoder(), steps=300, learning_rate=1e-3),),
        "logging": Logging(every=10, validate_every=0, tensorboard=False, bar=False),
    }
)
"""The decoder alone, which reads geometry from clean latents: what it learns in minutes depends on the labels most."""


class SweepRecipe(Knobs):
    """What is varied, and what is done at every point."""

    strictness: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0, 0.5, 1.0, 2.0)
    """How many times stricter than `curate` says the limits of label errors are; 0: no such limits."""
    vary: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    """Further axes, knobs of `curate` by path: {pixels.residual_px: [1, 3, null]}. Every combination is a point."""
    control: bool = False
    """Beside every point, one that trains on as many clips, drawn by the seed from those of strictness 0: what is different there
    comes of the labels and not of the number of clips."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Every point is trained with each: what differs between seeds is no effect of the labels."""
    held_out: str = ""
    """Another annotated run, of true labels, all of whose clips are measured on; empty: the validation split of OUT, as `curate`
    keeps it, and its own labels."""
    held_out_clips: Annotated[int, Field(ge=1)] = 64
    curate: CurateRecipe = CurateRecipe(splits=Splits(validation=0.2, test=0), report=Report(pictures=0))
    train: TrainRecipe = SHORT

    @model_validator(mode="after")
    def _points_exist(self) -> "SweepRecipe":
        if self.train.splits != ("train",):
            raise ValueError(
                f"train.splits is {self.train.splits}: a sweep trains on `train` alone and measures on the rest"
            )
        points(self)
        return self


def sweep_recipe(name_or_file: str, overrides: list[str]) -> SweepRecipe:
    """`default` or a YAML file, with `--set` overrides."""
    return load(SweepRecipe, SweepRecipe() if name_or_file == "default" else Path(name_or_file), overrides)


class Point(Knobs):
    """One selection and one seed."""

    strictness: float
    varied: dict[str, float | None]
    seed: int
    control: bool = False
    """As many clips as this point would keep, of those that strictness 0 keeps."""

    @property
    def label(self) -> str:
        more = "".join(
            f", {path.rpartition('.')[2]} {'off' if v is None else f'{v:g}'}" for path, v in self.varied.items()
        )
        return f"strictness {self.strictness:g}{more}{', as many at random' if self.control else ''}"


def points(recipe: SweepRecipe) -> list[Point]:
    """Every combination, in the order of the recipe. Raises ValueError for a path that is no knob of `curate`."""
    found = []
    for strictness, values, seed in itertools.product(
        recipe.strictness, itertools.product(*recipe.vary.values()), recipe.seeds
    ):
        point = Point(strictness=strictness, varied=dict(zip(recipe.vary, values)), seed=seed)
        curate_recipe(recipe, point)
        found.append(point)
        if recipe.control and strictness > 0:
            found.append(point.model_copy(update={"control": True}))
    return found


def curate_recipe(recipe: SweepRecipe, point: Point) -> CurateRecipe:
    """How this point selects."""
    overrides = [f"{path}={'null' if value is None else value}" for path, value in point.varied.items()]
    chosen = load(CurateRecipe, recipe.curate, overrides)
    return chosen.model_copy(update={"checks": tightened(chosen.checks, 0.0 if point.control else point.strictness)})


def sweep(out: str, folder: str, recipe: SweepRecipe) -> list[dict[str, Any]]:
    """Do all points that are not done, write and print the table and the plot; returns a row a point.

    Raises ValueError if `folder` holds another sweep, or nothing is held out.
    """
    root = Path(folder)
    _same_definition(root, out, recipe)
    held_out = _held_out(out, root, recipe)
    results: list[dict[str, Any]] = []
    for number, point in enumerate(points(recipe)):
        place = root / "points" / f"{number:03d}"
        if not (place / "result.json").exists():
            result = _do(out, place, point, recipe, held_out, results)
            files.write_whole(str(place / "result.json"), (json.dumps(result, indent=1) + "\n").encode())
        results.append(json.loads((place / "result.json").read_text()))
        sweep_page.write(root, results)
    print(sweep_page.table(results))
    print(f"{root / 'table.md'}  {root / 'sweep.png'}")
    return results


def _same_definition(root: Path, out: str, recipe: SweepRecipe) -> None:
    """A sweep goes on as it was begun, on the indexes it was begun with, or its rows could not be compared."""
    now = {"recipe": dump(recipe), "indexes": _fingerprint(out)}
    if recipe.held_out:
        now["held_out_indexes"] = _fingerprint(recipe.held_out)
    path = root / "sweep.json"
    if not path.exists():
        files.write_whole(str(path), (json.dumps(now, indent=1) + "\n").encode())
        files.write_whole(str(root / "sweep.yaml"), now["recipe"].encode())
        return
    before = json.loads(path.read_text())
    for name, what in (
        ("recipe", "another recipe"),
        ("indexes", "another OUT"),
        ("held_out_indexes", "other clips held out"),
    ):
        if before.get(name) != now.get(name):
            raise ValueError(f"{root}: holds a sweep with {what}, expected the same again (sweep.yaml) or a new folder")


def _fingerprint(out: str) -> str:
    """Changes if an index does."""
    digest = hashlib.blake2b(digest_size=16)
    folder = files.join(out, "shards") if files.exists(files.join(out, "shards")) else out
    for uri in sorted(files.list_files(folder, (".parquet",))):
        digest.update(f"{uri} {files.identity(uri)}\n".encode())
    return digest.hexdigest()


def _held_out(out: str, root: Path, recipe: SweepRecipe) -> pa.Table:
    """What every point is measured on, as the validation split."""
    if recipe.held_out:
        every = CurateRecipe(checks=Checks(**dict.fromkeys(Checks.model_fields)), duplicates=None)
        kept = _selected(recipe.held_out, every, root / "held_out")
    else:
        kept = _selected(out, recipe.curate, root / "held_out")
        kept = kept.filter(pc.equal(kept["split"], "validation"))  # pyright: ignore[reportAttributeAccessIssue]
    if not len(kept):
        raise ValueError(
            f"{recipe.held_out or out}: no clip is held out, expected some: raise curate.splits.validation or set held_out"
        )
    return _with_split(kept, "validation")


def _selected(out: str, recipe: CurateRecipe, folder: Path) -> pa.Table:
    """What is kept, with shards by whole uris, so that clips of several runs can be in one selection."""
    select.curate(out, recipe, to=str(folder))
    table = select.read_selection(str(folder))
    assert table is not None
    table = table.filter(table["keep"])
    absolute = out if files.is_remote(out) else str(Path(out).resolve())
    shard = pa.array([files.join(absolute, name) for name in table["shard"].to_pylist()], pa.string())
    return table.set_column(table.column_names.index("shard"), "shard", shard)


def _with_split(table: pa.Table, split: str) -> pa.Table:
    values = pa.array([split] * len(table), pa.string())
    return table.set_column(table.column_names.index("split"), "split", values)


def _do(
    out: str, place: Path, point: Point, recipe: SweepRecipe, held_out: pa.Table, done: list[dict[str, Any]]
) -> dict[str, Any]:
    """Select, train, measure. A selection that a point before it trained on with the same seed is not trained on again."""
    from train.stream import Stream

    chosen = curate_recipe(recipe, point)
    kept = _selected(out, chosen, place / "curated")
    own = pc.is_in(kept["source"], value_set=pc.unique(held_out["source"]))  # pyright: ignore[reportAttributeAccessIssue]
    kept = _with_split(kept.filter(pc.invert(own)), "train")  # pyright: ignore[reportAttributeAccessIssue]
    if point.control:
        kept = _drawn(kept, _kept_by(point, done), point.seed)
    row: dict[str, Any] = {"label": point.label, **point.model_dump(), "clips": len(kept), "run": "", "measures": {}}
    if not len(kept):
        return row | {"note": "no clip is kept"}
    both = pa.concat_tables([kept, held_out]).cast(SELECTION.with_metadata(chosen.pixels.metadata()))
    files.write_whole(str(place / "selection.parquet"), _parquet(both))
    trained = recipe.train.model_copy(update={"seed": point.seed})
    selection = Stream(kept, sizes=trained.sizes).hash
    for other in done:
        if (other.get("selection"), other["seed"]) == (selection, point.seed):
            same = {name: other[name] for name in ("run", "measures", "selection", "held_out")}
            return row | same | {"note": f"the selection of {other['label']}"}
    training.train(str(place), str(place / "run"), trained)
    from train import held_out as measuring

    held = held_out.cast(SELECTION)  # without the point's gates: all are measured on the same pixels
    measures = measuring.measure(place / "run" / "model", trained, str(place), held, recipe.held_out_clips)
    return row | {
        "run": str((place / "run").relative_to(place.parent.parent)),
        "selection": selection,
        "held_out": min(recipe.held_out_clips, len(held_out)),
        "measures": measures,
    }


def _kept_by(control: Point, done: list[dict[str, Any]]) -> int:
    """How many clips the point kept that this one is the control of."""
    of = control.model_copy(update={"control": False})
    return next(row["clips"] for row in done if row["label"] == of.label and row["seed"] == of.seed)


def _drawn(table: pa.Table, number: int, seed: int) -> pa.Table:
    rng = np.random.default_rng([seed, number])
    return table.take(pa.array(np.sort(rng.choice(len(table), min(number, len(table)), replace=False))))


def _parquet(table: pa.Table) -> bytes:
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
