"""How a run is spread over machines. Nothing here changes a label: only blocks and shards depend on the first two knobs."""

from typing import Annotated

from pydantic import Field

from shared.knobs import Knobs


class Fleet(Knobs):
    """Workers, their limits, and when a run gives up."""

    block_videos: Annotated[int, Field(ge=1)] = 16
    """Videos of the listing that are committed together."""
    clips_per_shard: Annotated[int, Field(ge=1)] = 64
    """A block with more annotated clips than this becomes several shards."""

    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that annotate; None: as many as fit."""
    workers_per_gpu: Annotated[int, Field(ge=1)] = 1
    """Each holds its own copy of the models: where they leave a GPU idle even with `overlap`."""
    overlap: bool | None = None
    """A worker decodes the next clip and encodes the one before while it annotates this one. None: where it holds a GPU; with only
    CPUs all three would share them."""
    screeners: Annotated[int, Field(ge=1)] | None = None
    """CPU processes that cut, screen and pack beside workers that hold GPUs; None: the CPUs left. Without GPUs workers do all."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """Of one worker; None: what its annotators ask for."""
    recycle_after: Annotated[int, Field(ge=1)] = 500
    """Tasks after which a worker is replaced by a fresh process, against leaks of libraries."""

    clip_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    video_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """For cutting and screening one video, and for packing one block."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """For a worker to load its models."""
    worker_gib: Annotated[float, Field(gt=0)] = 32.0
    """A worker process that grows beyond this (or beyond 80 % of its machine's memory) is killed: the clip is at fault."""
    in_flight_gib: Annotated[float, Field(gt=0)] | None = None
    """Pixels and labels under work at once, per machine; None: half of its memory. One task always runs."""
    spool_gib: Annotated[float, Field(gt=0)] = 200.0
    """Finished clips that wait for their block: beyond this no new block is opened."""
    open_blocks: Annotated[int, Field(ge=1)] = 64
    """Blocks under work at once, at most."""
    spool: str | None = None
    """Where finished clips wait; None: OUT/spool; a scratch folder here if OUT is a bucket and there is no cluster."""

    attempts: Annotated[int, Field(ge=1)] = 2
    """After so many deaths, time-outs or errors a clip is quarantined. A plain refusal (not a video) is final at once."""
    lost_attempts: Annotated[int, Field(ge=1)] = 6
    """The same for machines that vanish, which is rarely the clip's fault."""
    max_fault_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the last `fault_window` tasks; when one class of fault has more, the run stops and says which."""
    max_refused_videos: Annotated[int, Field(ge=1)] = 1000
    """So many unreadable files in a row stop the run; a folder may well hold many."""
    fault_window: Annotated[int, Field(ge=2)] = 50
