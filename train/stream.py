"""The training stream: a pure function of (seed, position). Its whole state is one integer, the step.

    position -> step -> size (one per step, so that ranks do equal work) -> data set -> draw number -> epoch and place -> clip

Every arrow is closed form, so a cold jump to any step costs what the next step costs, and the samples of a step do not depend on
how many ranks or workers ask for them.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from shared import files
from shared.index import SELECTION
from shared.trust import PixelGates
from train.foreign import WORK_KEY
from train.mixture import Shares, key, permute, shares
from train.size import Size

Split = Literal["train", "validation", "test"]
Rows = Int64[np.ndarray, " N"]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which clip stands at a position, and at which size."""

    position: int
    step: int
    clip_id: str
    dataset: str
    epoch: int
    """How often its data set was seen whole, at this size, before."""
    size: Size
    row: int
    """In the stream's table."""
    foreign: bool
    """Of a tar that worldreel did not write."""


class Stream:
    """Kept clips of a selection in an endless, exactly repeatable order: `stream[position]` is the `Draw` at that position.

    `batch` is the global batch: step s holds the positions s * batch to (s + 1) * batch - 1. `mixture` gives the share of each
    data set it names and leaves out the others; without it shares follow the summed weights. A clip is trained at the size nearest
    to its shape; without `sizes`, at the largest legal one within it. Raises ValueError in one sentence if nothing can be drawn.
    """

    def __init__(
        self,
        selection: str | Path | pa.Table,
        *,
        seed: int = 0,
        batch: int = 1,
        sizes: Sequence[Size] | None = None,
        mixture: Mapping[str, float] | None = None,
        splits: Sequence[Split] = ("train",),
    ) -> None:
        self.table = _kept(selection, splits)
        self.gates = PixelGates.of(self.table.schema.metadata)
        self.seed, self.batch = seed, batch
        sizes = _own_sizes(self.table) if sizes is None else sizes
        self._sizes = {str(size): size for size in sizes}
        weights = self.table["weight"].to_numpy().astype(np.float64)
        members = _members(self.table, sizes)
        self.num_too_short = self.table.num_rows - sum(len(rows) for rows in members.values())
        wanted = _wanted(mixture, members, weights)
        members = {at: rows for at, rows in members.items() if at[0] in wanted}
        self._rows = {at: np.repeat(rows, _copies(weights[rows])) for at, rows in members.items()}
        self._size_turns, self._dataset_turns = _turns(members, weights, wanted)

    @property
    def hash(self) -> str:
        """Stands for the clips, their weights, their labels and the gates on them, whatever the order of the rows."""
        digest = hashlib.blake2b(repr(self.gates).encode() if self.gates.parts else b"", digest_size=16)
        columns = ["clip_id", "dataset", "weight", "num_frames", "height", "width", "work_key", "shard"]
        for batch in self.table.select(columns).to_batches(max_chunksize=4096):
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                digest.update(repr(row).encode())
        return digest.hexdigest()

    def __getitem__(self, position: int) -> Draw:
        if position < 0:
            raise ValueError(f"position {position}: a stream begins at 0")
        step, place = divmod(position, self.batch)
        size, earlier_steps = self._size_turns[step]
        dataset, number = self._dataset_turns[size][earlier_steps * self.batch + place]
        rows = self._rows[dataset, size]
        epoch, turn = divmod(number, len(rows))
        row = int(rows[permute(turn, len(rows), key("epoch", self.seed, dataset, size, epoch))])
        return Draw(
            position=position,
            step=step,
            clip_id=self.table["clip_id"][row].as_py(),
            dataset=dataset,
            epoch=epoch,
            size=self._sizes[size],
            row=row,
            foreign=self.table["work_key"][row].as_py() == WORK_KEY,
        )

    def size(self, step: int) -> Size:
        """What every sample of this step is cut to."""
        return self._sizes[self._size_turns[step][0]]

    def row(self, draw: Draw) -> dict[str, Any]:
        """The selection's row of a draw: its shard, its parts, its caption."""
        return self.table.slice(draw.row, 1).to_pylist()[0]

    def positions(self, step: int, rank: int = 0, world: int = 1) -> range:
        """The slice of a step's global batch that is this rank's."""
        if self.batch % world:
            raise ValueError(f"a global batch of {self.batch} does not divide among {world} ranks")
        mine = self.batch // world
        return range(step * self.batch + rank * mine, step * self.batch + (rank + 1) * mine)

    def sources(self) -> list[tuple[str, Size]]:
        """Every data set at every size it is trained at."""
        return [(dataset, self._sizes[size]) for dataset, size in sorted(self._rows)]

    def when(self, dataset: str, size: Size, number: int) -> int:
        """The position at which a data set has its draw `number` (from 0) at a size."""
        nth_step, place = divmod(self._dataset_turns[str(size)].turn(dataset, number), self.batch)
        return self._size_turns.turn(str(size), nth_step) * self.batch + place


def read_selection(root: str | Path) -> pa.Table:
    """The table that `curate` wrote into a run's folder (or the parquet file itself)."""
    uri = str(root)
    path = uri if uri.endswith(".parquet") else f"{uri.rstrip('/')}/selection.parquet"
    if not files.exists(path):
        raise ValueError(f"{path} does not exist: run `worldreel curate {uri}` first")
    with files.open_input(path) as file:
        table = pq.read_table(file)
    if missing := set(SELECTION.names) - set(table.column_names):
        raise ValueError(f"{path}: no column {', '.join(sorted(missing))}, expected a selection written by curate")
    return table.select(SELECTION.names).cast(SELECTION.with_metadata(table.schema.metadata))


def _kept(selection: str | Path | pa.Table, splits: Sequence[Split]) -> pa.Table:
    """Kept rows of these splits, by clip id: the order in which curate wrote them must not matter."""
    table = read_selection(selection) if isinstance(selection, str | Path) else selection
    name = str(selection) if isinstance(selection, str | Path) else "the selection"
    kept = table["keep"].to_numpy() & (table["weight"].to_numpy() > 0)
    chosen = table.filter(pa.array(kept & np.isin(table["split"].to_pylist(), list(splits))))
    if not chosen.num_rows:
        raise ValueError(
            f"{name}: no clip to train on; {table.num_rows} listed, {int(kept.sum())} kept, none in {', '.join(splits)}"
        )
    return chosen.sort_by("clip_id").combine_chunks()


def _members(table: pa.Table, sizes: Sequence[Size]) -> dict[tuple[str, str], Rows]:
    """Rows of every (data set, size). A clip goes to one size; one with too few frames for all of them goes nowhere."""
    shapes = zip(*(table[name].to_pylist() for name in ("dataset", "num_frames", "height", "width")))
    nearest: dict[tuple[int, int, int], str | None] = {}
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (dataset, *shape) in enumerate(shapes):
        frames, height, width = shape
        if (frames, height, width) not in nearest:
            nearest[frames, height, width] = _nearest(frames, height, width, sizes)
        if (size := nearest[frames, height, width]) is not None:
            members[dataset, size].append(row)
    if not members:
        raise ValueError(f"no clip has {min(size.frames for size in sizes)} frames, the fewest that any size asks for")
    return {at: np.array(rows, np.int64) for at, rows in members.items()}


def _own_sizes(table: pa.Table) -> list[Size]:
    """The largest legal size within each shape that is there."""
    shapes = set(zip(*(table[name].to_pylist() for name in ("num_frames", "height", "width"))))
    legal = {((t - 1) // 8 * 8 + 1, h // 16 * 16, w // 16 * 16) for t, h, w in shapes if t >= 9 and h >= 16 and w >= 16}
    if not legal:
        raise ValueError("no clip has the 9 frames and 16 pixels a side that the smallest size asks for")
    return [Size(frames=t, height=h, width=w) for t, h, w in sorted(legal)]


def _nearest(frames: int, height: int, width: int, sizes: Sequence[Size]) -> str | None:
    """The size that uses most of a clip: nearest in aspect, then most frames, then nearest in area."""
    fitting = [size for size in sizes if size.frames <= frames]

    def distance(size: Size) -> tuple[float, int, float]:
        aspect = abs(math.log(size.width / size.height) - math.log(width / height))
        area = abs(math.log(size.width * size.height) - math.log(width * height))
        return round(aspect, 6), -size.frames, area

    return str(min(fitting, key=distance)) if fitting else None


def _wanted(
    mixture: Mapping[str, float] | None, members: Mapping[tuple[str, str], Rows], weights: Float64[np.ndarray, " n"]
) -> dict[str, float]:
    natural: dict[str, float] = defaultdict(float)
    for (dataset, _), rows in members.items():
        natural[dataset] += float(weights[rows].sum())
    if missing := set(mixture or {}) - set(natural):
        raise ValueError(f"mixture names {', '.join(sorted(missing))}; clips are there of {', '.join(sorted(natural))}")
    return dict(mixture) if mixture else dict(natural)


def _copies(weights: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How often each clip stands in an epoch: whole numbers in the ratio of the weights (within 2 %, or in sixteenths).

    Equal weights give 1 for all, so that an epoch shows each clip once.
    """
    ratio = weights / weights.min()
    for parts in range(1, 17):
        if (np.abs(ratio * parts / np.round(ratio * parts) - 1) < 0.02).all():
            break
    return np.round(ratio * parts).astype(np.int64)


def _turns(
    members: Mapping[tuple[str, str], Rows], weights: Float64[np.ndarray, " n"], wanted: Mapping[str, float]
) -> tuple[Shares, dict[str, Shares]]:
    """Which size a step has, and within a size which data set a sample has.

    With w_k the share of data set k and f_kb the part of it that size b trains, size b gets sum_k w_k f_kb of the steps, and in
    them data set k gets samples by w_k f_kb. Then overall shares stay w_k, and a data set's sizes end their epochs together.
    """
    whole: dict[str, float] = defaultdict(float)
    for (dataset, _), rows in members.items():
        whole[dataset] += float(weights[rows].sum())
    inside: dict[str, dict[str, float]] = defaultdict(dict)
    for (dataset, size), rows in members.items():
        inside[size][dataset] = wanted[dataset] * float(weights[rows].sum()) / whole[dataset]
    steps = shares({size: sum(by_dataset.values()) for size, by_dataset in inside.items()})
    return steps, {size: shares(by_dataset) for size, by_dataset in inside.items()}
