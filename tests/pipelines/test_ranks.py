"""A training run whose ranks are actors of Ray, against the same run alone."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import ranks, training
from train import loop
from train.recipe import Adam, Keeping, Logging, Parallel, Phase, Reading, TrainRecipe
from train.size import Size
from train.stages import Generator

sys.path.append(str(Path(__file__).parents[1] / "train"))
import corpus

pytestmark = pytest.mark.slow

RECIPE = TrainRecipe(
    batch=2,
    sizes=(Size(frames=9, height=32, width=48),),
    phases=(Phase(stage=Generator(), steps=3, learning_rate=1e-2),),
    adam=Adam(warmup_steps=0),
    reading=Reading(workers=0, threads=1, ahead=1),
    parallel=Parallel(recompute="none"),
    checkpoints=Keeping(every=100),
    logging=Logging(every=1, validate_every=0, tensorboard=False, bar=False),
    preflight=False,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(corpus.write(tmp_path_factory.mktemp("root"), frames=9, height=32, width=48))


@pytest.fixture(scope="module")
def cluster() -> Any:
    """Ray on this machine, with room for two ranks; what runs in it finds Ray there."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield ray
    ray.shutdown()


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_actors_train_what_one_process_trains(root: str, cluster: Any, tmp_path: Path) -> None:
    loop.train(RECIPE, root, str(tmp_path / "alone"))
    outcome = ranks.train(RECIPE, root, str(tmp_path / "actors"), address=None, ranks=2)
    assert (outcome.finished, outcome.step) == (True, 3)
    (start, _) = [json.loads(line) for line in (tmp_path / "actors" / "events.jsonl").read_text().splitlines()]
    assert start["ranks"] == 2
    mine, theirs = records(tmp_path / "actors"), records(tmp_path / "alone")
    assert len(mine) == 3
    assert [r["loss.total"] for r in mine] == pytest.approx([r["loss.total"] for r in theirs], rel=2e-5)
    assert _freed(cluster)


def _freed(cluster: Any) -> bool:
    """Ray needs a moment to notice that actors ended."""
    for _ in range(100):
        if cluster.available_resources().get("CPU") == 2:
            return True
        time.sleep(0.1)
    return False


def test_a_refusal_of_a_rank_is_the_same_sentence(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `worldreel curate"):
        ranks.train(RECIPE, str(tmp_path), str(tmp_path / "run"), address=None, ranks=1)


def test_more_ranks_than_there_is_room_for_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the cluster has 2 CPUs and 0 GPUs, too few for 3 ranks"):
        ranks.train(RECIPE, str(tmp_path), str(tmp_path / "run"), address=None, ranks=3)


def test_a_signal_saves_on_every_rank(root: str, cluster: Any, tmp_path: Path) -> None:
    """What the command does, stopped after its first step; and what Ray began goes on without it."""
    run = tmp_path / "run"
    many = RECIPE.model_copy(update={"phases": (Phase(stage=Generator(), steps=400, learning_rate=1e-3),)})
    ended = threading.Event()

    def stop() -> None:
        while not ended.wait(0.1):
            if (run / "metrics.jsonl").exists() and records(run):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=stop)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the signal may come as the run ends, when nobody listens
    watcher.start()
    try:
        with pytest.raises(SystemExit) as status:
            training.train(root, str(run), many, ranks=1)
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)
    assert status.value.code == training.STOPPED
    (checkpoint,) = (run / "checkpoints").iterdir()
    steps = int(checkpoint.name)
    assert steps == records(run)[-1]["step"]
    more = RECIPE.model_copy(update={"phases": (Phase(stage=Generator(), steps=steps + 1, learning_rate=1e-3),)})
    assert loop.train(more, root, str(run)).finished
    assert [record["step"] for record in records(run)] == list(range(1, steps + 2))
