"""Ranks: one process or many, replicas or shards; and what the backward pass computes again.

There is always a process group (of one rank when alone), so that one path is trained, saved and tested. Sharding is FSDP2, and
replicas are its hybrid form with shards of one rank. Weights, gradients and their reduction are float32; on GPUs the arithmetic is
bfloat16.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils import checkpoint as recomputation

from train.recipe import Parallel, TrainRecipe

ATTENTION = "scaled_dot_product"
"""Part of the name of every attention operator, whatever the backend."""

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
"""Of matrices; their last two arguments are the factors."""

MAX_GRAPHS = 64
"""Of one kind of block: one for each size, with and without gradients."""

FLOAT32_PARTS = ("heads",)
"""Parts of networks that compute in float32 whatever the rest does."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    group: Any
    """Of CPUs, for the few numbers that ranks tell each other without stopping a GPU."""
    sequence: int = 1
    """Neighboring ranks that share every sample."""
    sequence_group: Any = None
    """Of these neighbors."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of the batch this rank takes part in."""
        return self.rank // self.sequence

    @property
    def data_size(self) -> int:
        """Into how many shares the batch goes."""
        return self.size // self.sequence

    def sum(self, values: list[float]) -> list[float]:
        """Of all ranks, each number for itself."""
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.group)
        return summed.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. For rare events: it pickles."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def wait(self) -> None:
        """Until every rank is here."""
        dist.barrier(group=self.group)


@contextmanager
def join() -> Iterator[World]:
    """Joins the ranks that torchrun or Ray Train started, or stands alone; leaves the group it made itself."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    mine = not dist.is_initialized()
    if mine:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        alone = {} if "WORLD_SIZE" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(backend, **alone)
    try:
        group = dist.new_group(backend="gloo")
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device, group=group)
    finally:
        if mine:
            dist.destroy_process_group()


def sharing(world: World, knobs: Parallel) -> World:
    """The same ranks, so many neighbors of them to a sample. Every rank must call it."""
    if knobs.sequence == 1:
        return world
    groups = [dist.new_group(range(first, first + knobs.sequence)) for first in range(0, world.size, knobs.sequence)]
    return replace(world, sequence=knobs.sequence, sequence_group=groups[world.rank // knobs.sequence])


def check(recipe: TrainRecipe, world_size: int) -> None:
    """Refuses a batch that ranks cannot share evenly: unequal work hangs collectives. Raises ValueError."""
    sequence = recipe.parallel.sequence
    if world_size % sequence:
        raise ValueError(f"parallel.sequence is {sequence}, which does not divide {world_size} ranks")
    mine, left = divmod(recipe.batch, world_size // sequence)
    if left:
        raise ValueError(f"batch is {recipe.batch}, which does not divide among {world_size // sequence} ranks")
    if mine % recipe.parallel.micro_batch:
        raise ValueError(
            f"a rank's share of the batch is {mine}, not a multiple of parallel.micro_batch={recipe.parallel.micro_batch}"
        )


def computes_in(knobs: Parallel, device: torch.device) -> torch.dtype:
    """The precision of arithmetic. Weights, gradients and their reduction are float32 whatever it is."""
    chosen = knobs.precision if knobs.precision != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, chosen)


@contextmanager
def precision(knobs: Parallel, device: torch.device) -> Iterator[None]:
    """Matrix products in the precision of the knobs; what is sensitive (norms, losses, rotary tables) stays float32."""
    dtype = computes_in(knobs, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def place(module: nn.Module, knobs: Parallel, world: World) -> None:
    """Moves a module that will be trained to its device, and recomputes, compiles and shards its blocks as the knobs say.

    In place: names, and so checkpoints, stay those of the plain module, whatever the number of ranks.
    Raises ValueError for weights that are not float32: small updates would be rounded away.
    """
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}, trained weights must be float32: set model.dtype=float32")
    module.to(world.device)
    if world.sequence > 1 and hasattr(module, "transformer_blocks"):
        from train.sequence import share_tokens  # not at the top: it loads diffusers

        share_tokens(module, world.sequence_group, world.sequence)
    recompute(module, knobs.recompute)
    repeated = list(blocks(module))
    if knobs.compile and hasattr(module, "transformer_blocks"):
        _compile(repeated)
    if world.size > 1 or (world.device.type == "cuda" and knobs.mode != "ddp"):
        _shard(module, repeated, knobs, world)


def _compile(repeated: list[nn.Module]) -> None:
    """Compiles what a transformer's block computes, and not the gathering of its weights around it. All share one graph.

    Recomputation lies inside: around a compiled block its choice of operators would not be seen. The decoder's many small parts
    would take minutes to compile, for a twentieth of the work.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    for block in repeated:
        block.forward = torch.compile(block.forward, dynamic=False)


def _shard(module: nn.Module, repeated: list[nn.Module], knobs: Parallel, world: World) -> None:
    """FSDP2: blocks gather their weights, in the precision of the arithmetic, when their turn comes."""
    dtype, mesh = computes_in(knobs, world.device), _mesh(knobs, world)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in FLOAT32_PARTS:
            fully_shard(part, mesh=mesh)
    for block in [*repeated, module]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    for method in ("encode", "decode"):  # of the video VAE, which is not entered through forward
        if hasattr(module, method):
            register_fsdp_forward_method(module, method)


def place_frozen(module: nn.Module, knobs: Parallel, world: World) -> None:
    """Moves a module that is only read, in the precision of the arithmetic."""
    module.requires_grad_(False).eval().to(world.device)
    if (dtype := computes_in(knobs, world.device)) != torch.float32:
        module.to(dtype)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a network: members of its lists, the outermost ones."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (part for part in child if any(True for _ in part.parameters()))
        else:
            yield from blocks(child)


def recompute(module: nn.Module, what: str) -> None:
    """Chooses what the backward pass computes again: in every block of a transformer, or where a network has its own way."""
    if what == "none":
        return
    keep: dict[str, Any] = {"context_fn": _keep_costly} if what == "selective" else {}

    def again(function: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*inputs, **named)
        return recomputation.checkpoint(function, *inputs, use_reentrant=False, **keep, **named)

    if hasattr(module, "transformer_blocks"):
        for block in blocks(module):
            block.forward = partial(again, block.forward)
        return
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing(again)  # pyright: ignore[reportCallIssue]
        return
    for part in module.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = True  # pyright: ignore[reportArgumentType]


def _keep_costly() -> tuple[Any, Any]:
    return recomputation.create_selective_checkpoint_contexts(_costly)


def _costly(_context: Any, operator: Any, *inputs: Any, **__: Any) -> recomputation.CheckpointPolicy:
    """Keeps what is much work for little memory: attention, half of the work, and products whose output is the narrower side."""
    policy = recomputation.CheckpointPolicy
    if ATTENTION in str(operator) or (operator in PRODUCTS and _narrows(*inputs[-2:])):
        return policy.MUST_SAVE
    return policy.PREFER_RECOMPUTE


def _narrows(left: Tensor, right: Tensor) -> bool:
    """Of a product `rows x left` by `left x right`."""
    return left.shape[1] > right.shape[1]


def _mesh(knobs: Parallel, world: World) -> DeviceMesh:
    if knobs.mode == "ddp":
        return init_device_mesh(world.device.type, (world.size, 1), mesh_dim_names=("replica", "shard"))
    return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))


@contextmanager
def accumulating(modules: Iterable[nn.Module], *, last: bool) -> Iterator[None]:
    """Reduces gradients over ranks only in the last of the micro-batches."""
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_requires_gradient_sync(last)
    yield


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients to a global norm of at most `largest` and returns the norm before. Once a step, after accumulation."""
    norm = nn.utils.clip_grad_norm_(list(parameters), largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, not this rank's shard of it. Every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What of the tensor this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
