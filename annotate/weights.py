"""Where the weights of networks come from: a file, the weights folder, the hub's cache, or the hub. Nothing else downloads."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shared.knobs import Knobs


@runtime_checkable
class Loadable(Protocol):
    """A network that checks keys and shapes strictly while it loads."""

    def load_checkpoint(self, weights: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Network:
    """One published set of weights."""

    name: str
    source: str
    """A hub id (owner/name), or a file of one's own."""
    file: str = "model.safetensors"
    """Inside the hub repository."""
    other_file: str | None = None
    """Another official name of the same weights, taken where it lies, never downloaded."""
    revision: str | None = None
    num_bytes: int
    licence: str
    notice: str = ""
    """Terms that somebody has to accept first; empty: none."""
    build: Callable[[], Loadable]
    """The empty network, for the strict check of a file."""

    @property
    def is_file(self) -> bool:
        """The source is a path, not a hub id."""
        return Path(self.source).suffix in (".safetensors", ".pth", ".pt", ".bin")

    @property
    def place(self) -> Path:
        """Where a file put by hand is found: in the folder WORLDREEL_WEIGHTS, by default ~/.cache/worldreel/weights."""
        if self.is_file:
            return Path(self.source)
        folder = os.environ.get("WORLDREEL_WEIGHTS") or Path.home() / ".cache" / "worldreel" / "weights"
        return Path(folder) / self.source / self.file


@runtime_checkable
class HasNetworks(Protocol):
    """An annotator that needs published weights."""

    accept_licence: bool

    def networks(self) -> tuple[Network, ...]: ...


def needed(recipe: Knobs) -> Iterator[tuple[str, HasNetworks, Network]]:
    """Every network of the recipe's annotators, with the annotator and the knob it stands at."""
    for knob, value in recipe:
        if isinstance(value, HasNetworks):
            yield from ((knob, value, network) for network in value.networks())


def find(network: Network) -> Path | None:
    """The file on this machine, without touching the network; None if there is none."""
    beside = [network.place.with_name(network.other_file)] if network.other_file else []
    for path in (network.place, *beside):
        if path.is_file():
            return path
    if network.is_file:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(network.source, network.file, revision=network.revision)
    return Path(cached) if isinstance(cached, str) else None


def get(network: Network) -> Path:
    """The file, downloaded to the hub's cache if this machine has none.

    Raises ValueError with the command to run and the place to put the file, if it cannot be had.
    """
    found = find(network)
    if found is not None:
        return found
    if network.is_file:
        raise ValueError(f"{network.name}: {network.source} does not exist, expected the weights there")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(network.source, network.file, revision=network.revision))
    except Exception as error:  # offline, gated, moved: the hub's client raises a dozen kinds
        reason = " ".join(str(error).split()).split(". ")[0][:160]
        raise ValueError(
            f"{network.name}: not on this machine, and the hub did not give it ({reason}): run `worldreel weights fetch` "
            f"with a network, or put {network.file} of {network.source} at {network.place}"
        ) from None


def check(network: Network, path: Path) -> None:
    """Keys and shapes of a file against the network, without reading its numbers. Raises ValueError naming what differs."""
    import torch

    from annotate.networks.loading import read_shapes

    with torch.device("meta"):
        empty = network.build()
    try:
        empty.load_checkpoint(read_shapes(path))
    except ValueError as error:
        raise ValueError(str(error).replace("the state dict", str(path), 1)) from None


def device_of(gpus: float) -> str:
    """Where an annotator that asks for so many GPUs runs. Raises ValueError if there is none."""
    import torch

    if gpus <= 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"the annotator asks for {gpus:g} GPUs, this process sees none: set its gpus=0 to run it on the CPU"
        )
    return "cuda"
