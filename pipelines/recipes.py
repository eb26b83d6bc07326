"""Recipes: which annotators with which knobs. Each is a value; a new one derives from another and changes what differs.

Adding an annotator is its file and its name in one of the unions below; there is no other registry.
"""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from annotate.cameras.flow_ba import FlowBA
from annotate.cameras.vipe import Vipe
from annotate.cut import Cut
from annotate.depth.geometry_crafter import GeometryCrafter
from annotate.depth.moge import MoGe
from annotate.depth.multiview import Multiview
from annotate.flow.dis import Dis
from annotate.flow.sea_raft import SeaRaft
from annotate.motion import Motion
from annotate.screen import Screen
from curate.recipe import CurateRecipe
from pipelines import datasets
from pipelines.fleet_knobs import Fleet
from shared.knobs import Knobs, load
from shared.store import Store
from train.recipe import MEDIUM, PAPER, SMALL, TINY, TrainRecipe

R = TypeVar("R", bound=Knobs)

FlowChoice = Annotated[Dis | SeaRaft, Field(discriminator="kind")]
CamerasChoice = Annotated[FlowBA | Vipe, Field(discriminator="kind")]
DepthChoice = Annotated[Multiview | MoGe | GeometryCrafter, Field(discriminator="kind")]


class AnnotateRecipe(Knobs):
    """From videos to shards."""

    source: datasets.Source | None = None
    """Knobs of the data set that SOURCE names; None: videos, or the data set's defaults."""
    cut: Cut = Cut()
    screen: Screen = Screen()
    flow: FlowChoice = Dis()
    cameras: CamerasChoice = FlowBA()
    depth: DepthChoice = Multiview()
    motion: Motion = Motion()
    store: Store = Store()
    fleet: Fleet = Fleet()


_FULL = Cut(frames=49, fps=8, height=480, width=720)
"""The clips that CogVideoX-5B-I2V is made for."""

ANNOTATE = {
    "embedded": AnnotateRecipe(),
    "open": AnnotateRecipe(cut=_FULL, flow=SeaRaft(), depth=MoGe()),
    "paper": AnnotateRecipe(cut=_FULL, flow=SeaRaft(), cameras=Vipe(), depth=GeometryCrafter()),
}
"""`embedded` needs no weights and runs on a CPU; `open` allows commercial use; `paper` is as the paper labels real video."""


def annotate_recipe(name_or_file: str, overrides: list[str], source: str = "") -> AnnotateRecipe:
    """A built-in recipe or a YAML file, with `--set` overrides; `source.…` are those of the data set that SOURCE names."""
    named = datasets.split(source)
    if named is None and (wrong := next((o for o in overrides if o.startswith("source.")), "")):
        raise ValueError(f"--set {wrong}: SOURCE names no data set whose knobs could be turned")
    kind = [f"source.kind={named[0]}"] if named else []
    return load(AnnotateRecipe, _base(name_or_file, ANNOTATE), [*kind, *overrides])


def for_source(recipe: AnnotateRecipe, source: str) -> AnnotateRecipe:
    """The recipe with the knobs of the data set that SOURCE names, its defaults where it has none; without, for videos."""
    named = datasets.split(source)
    if named is None or recipe.source is None or recipe.source.kind != named[0]:
        default = datasets.DATASETS[named[0]] if named else None
        return AnnotateRecipe.model_validate(recipe.model_dump() | {"source": default})
    return recipe


CURATE = {"default": CurateRecipe()}


def curate_recipe(name_or_file: str, overrides: list[str]) -> CurateRecipe:
    """The built-in recipe or a YAML file, with `--set` overrides."""
    return load(CurateRecipe, _base(name_or_file, CURATE), overrides)


TRAIN = {"tiny": TINY, "small": SMALL, "medium": MEDIUM, "paper": PAPER}


def train_recipe(name_or_file: str, overrides: list[str]) -> TrainRecipe:
    """A built-in recipe or a YAML file, with `--set` overrides."""
    return load(TrainRecipe, _base(name_or_file, TRAIN), overrides)


def _base(name_or_file: str, built_in: dict[str, R]) -> R | Path:
    if name_or_file in built_in:
        return built_in[name_or_file]
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    raise ValueError(f"recipe {name_or_file!r}: expected one of {', '.join(built_in)}, or a .yaml file")
