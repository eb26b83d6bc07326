"""Data sets as sources: which there are, and how SOURCE names one: `pointodyssey:/data/po`."""

import re
from collections.abc import Iterator
from typing import Annotated

import yaml
from pydantic import Field as Knob

from annotate.datasets.bedlam import Bedlam
from annotate.datasets.bedlam2 import Bedlam2
from annotate.datasets.dataset import Dataset, Footage
from annotate.datasets.dynamic_replica import DynamicReplica
from annotate.datasets.kubric import Kubric
from annotate.datasets.omniworld import OmniWorld
from annotate.datasets.panda70m import Panda70M
from annotate.datasets.point_odyssey import PointOdyssey
from annotate.datasets.realestate10k import RealEstate10K
from annotate.datasets.simulated import Mujoco, MujocoRgb
from annotate.datasets.sintel import Sintel
from annotate.datasets.spatialvid import SpatialVID
from annotate.datasets.spring import Spring
from annotate.datasets.tartanair import TartanAir
from annotate.datasets.tartanair_v2 import TartanAirV2
from annotate.datasets.virtual_kitti2 import VirtualKitti2
from shared.knobs import Knobs

Source = Annotated[
    PointOdyssey
    | Bedlam
    | Bedlam2
    | DynamicReplica
    | OmniWorld
    | SpatialVID
    | Panda70M
    | VirtualKitti2
    | Spring
    | Sintel
    | TartanAir
    | TartanAirV2
    | Kubric
    | RealEstate10K
    | Mujoco
    | MujocoRgb,
    Knob(discriminator="kind"),
]
"""The knobs of one data set."""

_ALL: tuple[Dataset | Footage, ...] = (
    PointOdyssey(),
    Bedlam(),
    Bedlam2(),
    DynamicReplica(),
    OmniWorld(),
    SpatialVID(),
    Panda70M(),
    VirtualKitti2(),
    Spring(),
    Sintel(),
    TartanAir(),
    TartanAirV2(),
    Kubric(),
    RealEstate10K(),
    Mujoco(),
    MujocoRgb(),
)
DATASETS: dict[str, Dataset | Footage] = {dataset.kind: dataset for dataset in _ALL}
"""By kind, with their defaults."""

_ALSO = {"vkitti2": "virtual_kitti2", "movi": "kubric", "re10k": "realestate10k", "panda": "panda70m"}
_KINDS = {kind.replace("_", ""): kind for kind in DATASETS} | _ALSO
_MADE = {"mujoco", "mujoco_rgb"}
"""What follows their name is no place but what to make."""
_PREFIX = re.compile(r"^([A-Za-z][A-Za-z0-9_-]+):(?!//)(.*)$")


def split(source: str) -> tuple[str, str] | None:
    """(Kind, root) of a SOURCE that names a data set, `-` and `_` and capitals aside; None: it names none.

    Raises ValueError for a prefix that no data set has.
    """
    found = _PREFIX.match(source)
    if found is None:
        return None
    kind = _KINDS.get(_bare(found[1]))
    if kind is None:
        raise ValueError(f"{source}: there is no data set {found[1]!r}; `worldreel datasets` lists them")
    return kind, found[2]


def _bare(name: str) -> str:
    return re.sub("[_-]", "", name.lower())


def is_made(kind: str) -> bool:
    """True: its scenes lie nowhere, they are made."""
    return kind in _MADE


def scenes(dataset: Dataset | Footage, root: str) -> Iterator[str]:
    """Uris of the scenes below a folder or bucket that the data set's knobs ask for."""
    return (uri for uri in dataset.scenes(root) if dataset.takes(root, uri))


def show(name: str | None = None) -> None:
    """Print every data set: how to name it, where to get it, its terms, size and layout, and the truth that it brings.

    Of one that is named, its knobs too. Raises ValueError for a name that no data set has.
    """
    if name is not None:
        kind = _KINDS.get(_bare(name.partition(":")[0]))
        if kind is None:
            raise ValueError(f"there is no data set {name!r}; `worldreel datasets` lists them")
        _show(DATASETS[kind])
        _show_knobs(DATASETS[kind])
        return
    for dataset in _ALL:
        _show(dataset)
    print("`worldreel datasets NAME` lists the knobs of one.")


def _show(dataset: Dataset | Footage) -> None:
    about = dataset.about
    print(f"{dataset.kind}: {about.title}")
    rows = {
        "source": f"worldreel annotate {dataset.kind}:{'COUNT' if is_made(dataset.kind) else 'FOLDER'} OUT",
        "get it": about.where,
        "licence": dataset.licence,
        "size": about.size,
        "brings": about.brings,
        "layout": about.layout,
    }
    for title, value in rows.items():
        print(f"  {title:8} {value}")


def _show_knobs(dataset: Dataset | Footage) -> None:
    """Each as it is set: what is found there is written into the run's recipe.yaml."""
    assert isinstance(dataset, Knobs)
    values = dataset.model_dump(mode="json")
    print(
        "  knobs    (clips a second and size are the recipe's: cut.fps, cut.height, cut.width, cut.max_clips_per_shot)"
    )
    for name, field in type(dataset).model_fields.items():
        if name != "kind":
            value = yaml.safe_dump(values[name], default_flow_style=True, width=10_000).split("\n...")[0].strip()
            print(f"    --set source.{name}={value}")
            if field.description:
                print(f"        {' '.join(field.description.split())}")
