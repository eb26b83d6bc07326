"""A sample's randomness is its own."""

import torch

from train.noise import Noise, generator

LIKE = torch.zeros(())


def test_a_sample_draws_the_same_in_any_batch():
    alone = Noise(seed=3, positions=(12,)).normal("diffusion", (4, 2), LIKE)
    together = Noise(seed=3, positions=(11, 12, 13)).normal("diffusion", (4, 2), LIKE)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_seed_position_and_purpose_each_matter():
    keys = [(0, 1, "t"), (1, 0, "t"), (0, 1, "image"), (0, 11, "t"), (1, 1, "t")]
    first = {torch.randint(2**60, (), generator=generator(*key)).item() for key in keys}
    assert len(first) == len(keys)


def test_uniform_and_integers_cover_their_range():
    noise = Noise(seed=0, positions=tuple(range(4000)))
    uniform, integers = noise.uniform("t", LIKE), noise.integers("t", 1000, (), LIKE)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert abs(integers.double().mean() - 499.5) < 3 * 289 / 4000**0.5
    assert integers.min() >= 0
    assert integers.max() <= 999
