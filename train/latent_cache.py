"""Latents on disk: a clip's window is encoded once, and from then on neither its pixels nor its flow are read.

FOLDER/{identity}/{name}.clip holds one window: both posteriors, and the window's first frame, which the image condition encodes
live under fresh noise. `identity` stands for the VAE's weights and precision, the codec of the geometry video and the gates on
pixels; `name` for the clip's own record, which has the checksum of every member, the window and the size. So a changed clip, VAE,
knob or gate is another file, and nothing stale can be read. Files are whole or absent, with checksums; any number of processes may
share the folder.
"""

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from shared import shards
from train.encoded import Encoded
from train.sample import Batch
from train.size import Size

log = logging.getLogger(__name__)

_MEMBER = "latents.safetensors"
WAITING = 4
"""Batches that may wait to be written before the trainer waits for the disk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What the cache has of one window: all that the first stage needs."""

    encoded: Encoded
    """Of one sample."""
    first: UInt8[Tensor, "H W 3"]
    has_depth: Bool[Tensor, ""]
    has_flow: Bool[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """Where latents are kept, and under which names. It has no state: every worker has one."""

    folder: Path
    identity: str

    def name(self, record: Mapping[str, bytes], start: int, size: Size) -> str:
        """Of the window of `size` from frame `start` on; `record`: the members that stand for the whole clip."""
        digest = hashlib.blake2b(f"{self.identity}/{start}/{size}".encode(), digest_size=16)
        for suffix, data in sorted(record.items()):
            digest.update(f"/{suffix}/{len(data)}/".encode())
            digest.update(data)
        return digest.hexdigest()

    def read(self, name: str) -> Known | None:
        """None if it is not there, or not whole."""
        try:
            found = load(shards.read_artifact(self._path(name))[1][_MEMBER])
            flags = {flag: found.pop(flag) for flag in ("first", "has_depth", "has_flow")}
            return Known(encoded=Encoded(**found), **flags)
        except (ValueError, KeyError, TypeError, SafetensorError):
            return None

    def write(self, name: str, clip_id: str, known: Known) -> int:
        """Returns its bytes."""
        flags = {flag: getattr(known, flag) for flag in ("first", "has_depth", "has_flow")}
        data = save({tensor: value.contiguous() for tensor, value in (vars(known.encoded) | flags).items()})
        shards.write_artifact(self._path(name), clip_id, {_MEMBER: data}, {})
        return len(data)

    def bytes_kept(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / self.identity).glob("*.clip"))

    def _path(self, name: str) -> Path:
        return self.folder / self.identity / f"{name}.clip"


class LatentWriter:
    """Keeps what the trainer encodes, behind its back. A folder that is full, by `max_gb` or by the disk, takes no more: what is in
    it stays, because every epoch comes in another order and the oldest is as likely to be next as any other.
    """

    def __init__(self, cache: LatentCache, max_gb: float) -> None:
        self.cache, self._room = cache, int(max_gb * 2**30)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="latents")
        self._pending: list[Future[None]] = []
        self._taken = self._unseen = 0
        self._look()

    def put(self, batch: Batch, encoded: Encoded) -> None:
        """Keeps the latents of the batch's samples that have a name: those that were read."""
        if self._taken + self._unseen >= self._room or not any(batch.cache_names):
            return
        for row, one in enumerate(encoded.mapped(lambda value: value.cpu()).rows()):
            if batch.cache_names[row]:
                flags = {flag: getattr(batch, flag)[row].cpu() for flag in ("has_depth", "has_flow")}
                known = Known(encoded=one, first=batch.rgb[row, 0].cpu(), **flags)
                self._pending.append(self._pool.submit(self._write, batch.cache_names[row], batch.ids[row], known))
        self.finish(len(batch.ids) * WAITING)

    def finish(self, waiting: int = 0) -> None:
        """Returns when no more than `waiting` files are yet to be written."""
        while len(self._pending) > waiting:
            self._pending.pop(0).result()

    def _write(self, name: str, clip_id: str, known: Known) -> None:
        try:
            self._unseen += self.cache.write(name, clip_id, known)
        except ValueError as error:
            log.warning("latent_cache takes no more: %s", error)
            self._taken = self._room
        if self._unseen > self._room // 64:
            self._look()  # others write here as well

    def _look(self) -> None:
        self._taken, self._unseen = self.cache.bytes_kept(), 0
        if self._taken >= self._room:
            log.warning("latent_cache=%s is full: %.1f GB", self.cache.folder, self._taken / 2**30)


def identity(vae: nn.Module, knobs: str, gates: str) -> str:
    """Stands for the VAE (its weights, as they are now, and their precision), the codec of geometry and the gates on labels."""
    digest = hashlib.blake2b(f"{knobs}/{gates}".encode(), digest_size=16)
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
