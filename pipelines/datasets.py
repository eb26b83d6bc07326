"""Data sets as sources: which there are, and how SOURCE names one: `pointodyssey:/data/po`."""

import re
from collections.abc import Iterator

from annotate.datasets.bedlam import Bedlam
from annotate.datasets.bedlam2 import Bedlam2
from annotate.datasets.dataset import Dataset
from annotate.datasets.dynamic_replica import DynamicReplica
from annotate.datasets.omniworld import OmniWorld
from annotate.datasets.point_odyssey import PointOdyssey

DATASETS: dict[str, Dataset] = {
    dataset.kind: dataset for dataset in (PointOdyssey(), Bedlam(), Bedlam2(), DynamicReplica(), OmniWorld())
}
"""By kind, with their defaults."""

_ALIASES = {
    "dynamicreplica": "dynamic_replica",
    "vkitti2": "virtual_kitti2",
    "virtualkitti2": "virtual_kitti2",
    "tartanairv2": "tartanair_v2",
    "movi": "kubric",
    "re10k": "realestate10k",
    "panda": "panda70m",
}
_PREFIX = re.compile(r"^([A-Za-z][A-Za-z0-9_-]+):(?!//)(.*)$")


def split(source: str) -> tuple[str, str] | None:
    """(Kind, root) of a SOURCE that names a data set; None: it names none.

    Raises ValueError for a prefix that no data set has.
    """
    found = _PREFIX.match(source)
    if found is None:
        return None
    word = re.sub("[_-]", "", found[1].lower())
    kind = _ALIASES.get(word, word)
    if kind not in DATASETS:
        raise ValueError(f"{source}: there is no data set {found[1]!r}; `worldreel datasets` lists them")
    return kind, found[2]


def scenes(kind: str, root: str) -> Iterator[str]:
    """Uris of the data set's scenes below a folder or bucket."""
    return DATASETS[kind].scenes(root)
