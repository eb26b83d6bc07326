"""Checkpoints: written aside by every rank while training goes on, whole or absent, loadable by any number of ranks.

RUN/checkpoints/{step:08d}/ holds what torch's distributed checkpoint writes, and `state.json`, written last: the step, which is all
of the stream's state, the hash of the selection, and the recipe. The folder gets its name only when all of it is there.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from train.parallel import World

log = logging.getLogger(__name__)

MARKER = "state.json"
FAILURES = (RuntimeError, OSError, ValueError, dcp.api.CheckpointException)
_NAME = re.compile(r"\d{8}")


class Checkpoints:
    """The checkpoints of one run. The folder must be one that all ranks share."""

    def __init__(self, folder: Path, world: World, *, keep: int = 3) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._group: Any = dist.new_group(
            backend="gloo"
        )  # a thread's collectives must not meet those of the training step
        self._pending: tuple[Path, dict[str, Any], Future] | None = None
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.partial"):
                shutil.rmtree(left)
        world.wait()

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its state; None in a new run."""
        found = whole(self.folder)
        return (found[-1], json.loads((found[-1] / MARKER).read_text())) if found else None

    def save(
        self,
        learned: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        ema: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        wait: bool = False,
    ) -> None:
        """Copies weights and optimizer at once and writes them while training goes on; `wait` writes before it returns.

        `state["step"]` names the checkpoint. Every rank must call it.
        """
        self.finish()
        partial = self.folder / f"{state['step']:08d}.partial"
        model = nn.ModuleDict(dict(learned))
        tensors = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
            "ema": dict(ema),
        }
        future = dcp.async_save(tensors, checkpoint_id=partial, process_group=self._group)
        assert isinstance(future, Future)
        self._pending = (partial, dict(state), future)
        if wait:
            self.finish()

    def poll(self) -> None:
        """Gives a written checkpoint its name; costs nothing while it is still being written."""
        if self._pending is not None and self._pending[2].done():
            self._commit()

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, on every rank."""
        if self._pending is not None:
            self._commit()
            self.world.wait()

    def restore(
        self,
        path: Path,
        learned: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | None,
        ema: Mapping[str, Tensor],
    ) -> None:
        """Loads weights, and the optimizer and the averages where given, in place. Raises ValueError for a damaged checkpoint."""
        model = nn.ModuleDict(dict(learned))
        tensors: dict[str, Any] = {"model": get_model_state_dict(model)}
        if optimizer is not None:
            tensors["optimizer"] = get_optimizer_state_dict(model, optimizer)
        if ema:
            tensors["ema"] = dict(ema)
        try:
            dcp.load(tensors, checkpoint_id=path)
        except FAILURES as error:
            raise ValueError(f"{path}: this checkpoint does not load ({_reason(error)})") from error
        set_model_state_dict(model, tensors["model"])
        if optimizer is not None:
            set_optimizer_state_dict(model, optimizer, tensors["optimizer"])

    def _commit(self) -> None:
        assert self._pending is not None
        partial, state, future = self._pending
        self._pending = None
        try:
            future.result()
        except FAILURES as error:
            raise ValueError(
                f"{partial}: the checkpoint of step {state['step']} could not be written ({_reason(error)})"
            ) from error
        if self.world.is_first:
            _write_synced(partial / MARKER, json.dumps(state, indent=1))
            done = partial.with_suffix("")
            if done.exists():  # the same step, saved again on the way out
                _remove(done)
            partial.rename(done)
            _sync_folder(self.folder)
            for old in whole(self.folder)[: -self.keep]:
                _remove(old)
            log.info("checkpoint step=%d path=%s", state["step"], done)


def whole(folder: Path) -> list[Path]:
    """Checkpoints that are all there, oldest first."""
    return sorted(path for path in folder.glob("*") if _NAME.fullmatch(path.name) and (path / MARKER).exists())


def _remove(path: Path) -> None:
    (path / MARKER).unlink()  # first: what is left of it, if this process dies here, is no checkpoint
    shutil.rmtree(path)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """The last line that says something: torch puts the tracebacks of all ranks into one message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
