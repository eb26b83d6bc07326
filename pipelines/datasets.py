"""Data sets as sources: which there are, and how SOURCE names one: `pointodyssey:/data/po`."""

import re
from collections.abc import Iterator

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
    kind = _KINDS.get(re.sub("[_-]", "", found[1].lower()))
    if kind is None:
        raise ValueError(f"{source}: there is no data set {found[1]!r}; `worldreel datasets` lists them")
    return kind, found[2]


def is_made(kind: str) -> bool:
    """True: its scenes lie nowhere, they are made."""
    return kind in _MADE


def scenes(kind: str, root: str) -> Iterator[str]:
    """Uris of the data set's scenes below a folder or bucket."""
    return DATASETS[kind].scenes(root)


def show() -> None:
    """Print every data set: how to name it, where to get it, its terms, size and layout, and the truth that it brings."""
    for dataset in _ALL:
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
        for name, value in rows.items():
            print(f"  {name:8} {value}")
