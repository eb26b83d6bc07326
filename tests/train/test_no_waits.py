"""No step asks a device for a number, or for how many there are: either would stop a GPU in the middle of its work (defect 13).

The whole loss and its gradient run on tensors that have a shape and a device but no numbers, so that every `.item()`, `.tolist()`,
`bool()`, `nonzero` and index by a mask raises, and so does every operation between that device and the host.
"""

import contextlib
from dataclasses import replace

import examples
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from train import models
from train.models import ModelKnobs
from train.noise import Noise
from train.stages import Decoder, Generator, Joint, SelfSupervised

DEVICE = torch.device("meta")


@pytest.fixture
def mode(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no device without numbers
    copy, tensor = Tensor.to, torch.tensor
    monkeypatch.setattr(Tensor, "to", lambda self, *where, **how: copied(copy, self, *where, **how))
    monkeypatch.setattr(torch, "tensor", lambda *what, **how: made(tensor, *what, **how))
    monkeypatch.setattr(Tensor, "new_tensor", lambda self, *_, **__: pytest.fail(f"a copy of numbers to {self.device}"))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        yield fake


def copied(plain, tensor, *where, **how):
    """Only copies that do not wait."""
    found = plain(tensor, *where, **how)
    if found.device != tensor.device and not how.get("non_blocking"):
        pytest.fail(f"a copy of {tuple(tensor.shape)} to {found.device} that waits")
    return found


def made(plain, *what, device=None, **how):
    """On the host only: numbers are copied to a device, and that waits."""
    if device is not None and torch.device(device) == DEVICE:
        pytest.fail(f"a copy of {what} to {device}")
    return plain(*what, **how)


class Text:
    """Embeddings that are there, on the host, as of cached captions."""

    width = 32

    def __init__(self, embeddings):
        self.embeddings = embeddings

    def __call__(self, captions):
        return self.embeddings


class HostNoise(Noise):
    """As `Noise`; what is drawn for the host has numbers, as the host has."""

    def uniform(self, purpose, like):
        if like.device == DEVICE:
            return super().uniform(purpose, like)
        with unset_fake_temporarily():
            return super().uniform(purpose, torch.empty(0))


def moved(mode, module):
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach()).to(DEVICE, non_blocking=True)
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = mode.from_tensor(value).to(DEVICE, non_blocking=True)


@pytest.mark.parametrize("stage", [Generator(), Decoder(), Joint(), SelfSupervised()], ids=lambda stage: stage.kind)
def test_a_step_waits_for_nothing(stage, mode):
    with unset_fake_temporarily():
        built, batch = models.build(ModelKnobs()), examples.batch("orbit", "lateral")
        text = built.text([""] * 2)
    for module in stage.trainable(built).values():
        module.requires_grad_(True)
    for module in (built.vae, built.dit, built.dpt):
        moved(mode, module)
    built = replace(built, text=Text(mode.from_tensor(text)))
    batch = batch.mapped(mode.from_tensor).to(DEVICE)
    losses = stage.loss(built, batch, HostNoise(seed=0, positions=(3, 4)), torch.ones(()).to(DEVICE, non_blocking=True))
    assert {loss.device for loss in losses.values()} == {DEVICE}
    losses["total"].backward()
    trained = [p for module in stage.trainable(built).values() for p in module.parameters()]
    assert sum(p.grad is not None for p in trained) > 0.9 * len(trained)


@pytest.mark.parametrize("ask", [Tensor.item, Tensor.tolist, bool, lambda x: x[x > 0], Tensor.nonzero, Tensor.numpy])
def test_the_tensors_refuse_what_waits(ask, mode):
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(mode.from_tensor(torch.ones(1)).to(DEVICE, non_blocking=True))
