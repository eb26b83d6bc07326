"""Checkpoints under everything that can happen to them."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from train import parallel
from train.checkpoint import MARKER, Checkpoints, whole

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world():
    with parallel.join() as world:
        yield world


def model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    return {"net": net}, torch.optim.AdamW(net.parameters(), lr=0.1)


def step(learned, optimizer):
    learned["net"](torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(learned):
    return {name: value.clone() for name, value in nn.ModuleDict(learned).state_dict().items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_restored_goes_on_bit_for_bit(world, tmp_path):
    learned, optimizer = model()
    average = {"net.0.weight": torch.full((8, 4), 3.0)}
    checkpoints = Checkpoints(tmp_path, world)
    step(learned, optimizer)
    checkpoints.save(learned, optimizer, average, {"step": 1, "norms": [0.5]}, wait=True)
    step(learned, optimizer)
    other, fresh = model(seed=7)
    averages = {"net.0.weight": torch.zeros(8, 4)}
    path, state = Checkpoints(tmp_path, world).latest()
    assert (path.name, state) == ("00000001", {"step": 1, "norms": [0.5]})
    checkpoints.restore(path, other, fresh, averages)
    step(other, fresh)
    assert_equal(weights(other), weights(learned))
    assert_equal(averages, average)


def test_training_goes_on_while_a_checkpoint_is_written(world, tmp_path):
    """What is saved is the moment of the call, though the weights change at once."""
    learned, optimizer = model()
    step(learned, optimizer)
    before = weights(learned)
    checkpoints = Checkpoints(tmp_path, world)
    checkpoints.save(learned, optimizer, {}, {"step": 1})
    for _ in range(3):
        step(learned, optimizer)
    checkpoints.finish()
    other, fresh = model(seed=7)
    checkpoints.restore(whole(tmp_path)[0], other, fresh, {})
    assert_equal(weights(other), before)
    assert fresh.state_dict()["state"][0]["step"] == 1


def test_only_the_newest_are_kept(world, tmp_path):
    learned, optimizer = model()
    step(learned, optimizer)
    checkpoints = Checkpoints(tmp_path, world, keep=2)
    for number in (1, 2, 3, 3, 10):
        checkpoints.save(learned, optimizer, {}, {"step": number})
    checkpoints.finish()
    assert [path.name for path in whole(tmp_path)] == ["00000003", "00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000010"]


def test_a_process_killed_while_saving_leaves_the_checkpoint_before(world, tmp_path):
    """The writing process dies by SIGKILL as soon as its writer thread has begun a file."""
    learned, optimizer = model()
    step(learned, optimizer)
    Checkpoints(tmp_path, world).save(learned, optimizer, {}, {"step": 1}, wait=True)
    code = f"""
        import os, pathlib, signal, threading
        import torch
        from torch import nn
        from torch.distributed.checkpoint import filesystem
        from train import parallel
        from train.checkpoint import Checkpoints

        plain = filesystem._write_item
        def dies(*args, **kwargs):
            plain(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        filesystem._write_item = dies
        with parallel.join() as world:
            net = nn.Linear(64, 64)
            optimizer = torch.optim.AdamW(net.parameters())
            net(torch.ones(1, 64)).sum().backward()
            optimizer.step()
            Checkpoints(pathlib.Path({str(tmp_path)!r}), world).save({{"net": net}}, optimizer, {{}}, {{"step": 2}}, wait=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=os.environ, check=False)
    assert done.returncode == -9
    partial = tmp_path / "00000002.partial"
    assert any(partial.iterdir())
    assert [path.name for path in whole(tmp_path)] == ["00000001"]
    again = Checkpoints(tmp_path, world)
    assert not partial.exists()
    other, fresh = model(seed=7)
    path, _ = again.latest()
    again.restore(path, other, fresh, {})
    assert_equal(weights(other), weights(learned))


def test_without_its_marker_it_is_no_checkpoint(world, tmp_path):
    learned, optimizer = model()
    step(learned, optimizer)
    checkpoints = Checkpoints(tmp_path, world)
    for number in (1, 2):
        checkpoints.save(learned, optimizer, {}, {"step": number}, wait=True)
    (tmp_path / "00000002" / MARKER).unlink()
    assert checkpoints.latest()[0].name == "00000001"
    assert json.loads((tmp_path / "00000001" / MARKER).read_text()) == {"step": 1}


def test_a_damaged_checkpoint_is_refused_by_name(world, tmp_path):
    learned, optimizer = model()
    step(learned, optimizer)
    checkpoints = Checkpoints(tmp_path, world)
    checkpoints.save(learned, optimizer, {}, {"step": 1}, wait=True)
    for path in (tmp_path / "00000001").glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="00000001: this checkpoint does not load"):
        checkpoints.restore(tmp_path / "00000001", *model(), {})


def test_a_failed_write_is_not_silent(world, tmp_path):
    learned, optimizer = model()
    step(learned, optimizer)
    checkpoints = Checkpoints(tmp_path, world)
    (tmp_path / "00000001.partial").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"checkpoint of step 1 could not be written \(FileExistsError"):
        checkpoints.save(learned, optimizer, {}, {"step": 1}, wait=True)
    assert whole(tmp_path) == []
