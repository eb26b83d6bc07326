"""The ranks of a training run as actors of a Ray cluster. Ray only starts them: exactness and resuming are the trainer's own.

Ray Core, not Ray Train, whose further dependencies (pandas, tensorboardX, ...) would bring nothing that is used here: each actor is
given the environment that torchrun would have given it.
"""

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from pipelines import fleet
from train.recipe import TrainRecipe

if TYPE_CHECKING:
    from train.loop import Outcome


class _Rank:
    """One rank, in a process of its own."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def meet(self) -> tuple[str, int]:
        """Where the others can find this one."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return host, free.getsockname()[1]

    def train(self, environment: dict[str, str], recipe: TrainRecipe, out: str, run: str) -> "Outcome | ValueError":
        """Trains as a rank; a refusal is returned, so that it stays one sentence."""
        os.environ.update(environment)
        from train import loop

        try:
            return loop.train(recipe, out, run, self._stop)
        except ValueError as refusal:
            return refusal

    def stop(self) -> None:
        """Asks for a checkpoint at the end of the step."""
        self._stop.set()


def train(recipe: TrainRecipe, out: str, run: str, *, address: str | None, ranks: int | None) -> "Outcome":
    """`train.loop.train` on so many actors of the cluster at `address`; None ranks: one for each GPU, or one.

    SIGTERM and Ctrl-C save and end. Raises ValueError if the cluster has no room, for refusals, and for a rank that died.
    """
    ray, ours = fleet.connect(address)
    try:
        return _trained(ray, recipe, out, run, ranks)
    finally:
        if ours:
            ray.shutdown()


def _trained(ray: Any, recipe: TrainRecipe, out: str, run: str, ranks: int | None) -> "Outcome":
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    ranks = ranks or max(1, gpus)
    each = {"CPU": 1.0} | ({"GPU": 1.0} if gpus else {})
    if any(ranks * amount > has.get(name, 0) for name, amount in each.items()):
        raise ValueError(f"the cluster has {int(has.get('CPU', 0))} CPUs and {gpus} GPUs, too few for {ranks} ranks")
    group = ray.util.placement_group([each] * ranks, strategy="PACK")
    try:
        if not group.wait(timeout_seconds=60):
            raise ValueError(f"the cluster has no room for {ranks} ranks now: others use its {', '.join(each)}s")
        return _run(ray, _actors(ray, group, each, ranks), recipe, out, run)
    finally:
        ray.util.remove_placement_group(group)  # and its actors


def _actors(ray: Any, group: Any, each: dict[str, float], ranks: int) -> list[Any]:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    remote = ray.remote(_Rank)
    return [
        remote.options(
            num_cpus=each["CPU"],
            num_gpus=each.get("GPU", 0),
            max_concurrency=2,  # `stop` while `train` runs
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote()
        for rank in range(ranks)
    ]


def _run(ray: Any, actors: list[Any], recipe: TrainRecipe, out: str, run: str) -> "Outcome":
    try:
        host, port = ray.get(actors[0].meet.remote())
        shared = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": str(len(actors)), "LOCAL_RANK": "0"}
        calls = [
            actor.train.remote(shared | {"RANK": str(rank)}, recipe, out, run) for rank, actor in enumerate(actors)
        ]
        return _awaited(ray, actors, calls)
    except ray.exceptions.RayActorError as error:
        raise ValueError(
            f"a rank died ({' '.join(str(error).split())[:200]}): run the same command again to go on"
        ) from None


def _awaited(ray: Any, actors: list[Any], calls: list[Any]) -> "Outcome":
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    waiting, found, told = calls, [], False
    try:
        while waiting:  # the first that fails or refuses ends all: the others would wait for it for ever
            done, waiting = ray.wait(waiting, timeout=0.5)
            for outcome in ray.get(done):
                if isinstance(outcome, ValueError):
                    raise outcome
                found.append(outcome)
            if asked.is_set() and not told:
                ray.get([actor.stop.remote() for actor in actors])
                told = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return found[0]
