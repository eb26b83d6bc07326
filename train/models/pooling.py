"""Weights by hand for a video VAE that nobody has trained: a latent of averages over 4 x 4 pixels and 4 frames.

A VAE with random weights loses most of what it is shown, and to train one takes longer than all the small things built on it. So
free bases have the plainest compression that the real architecture can express. Twelve of the 16 latent
channels are the four quarters of a cell, for each of three colors; the residual branches start at zero, as the identity.

The two layers that are not linear are undone. Every signal x goes in twice, as x and -x: silu(x) - silu(-x) = x. And the one group
of the last norm also holds constants that are large beside any signal, so that it divides by almost the same number always.
"""

from typing import Any

import torch
from torch import Tensor

from train.latents import VideoVAE

COLORS = 3
SIGNALS = 4 * COLORS
GAIN = 2.0
"""Of the latent: near unit deviation for usual pictures and depth."""
CONSTANT = 20.0
"""Signals are at most 1: the norm's divisor varies by less than a percent."""
LOG_VARIANCE = -6.0
LEFT, RIGHT = (0.0, 0.25, 0.25), (0.25, 0.25, 0.0)
"""After doubling by repetition, these kernels on left and right halves give (1/4, 1/2, 1/4) over the halves in order."""


@torch.no_grad()
def start(vae: VideoVAE) -> VideoVAE:
    """Sets the weights, in place. The VAE has one norm group and at least (8, 8, 12, 26) channels, the last two different."""
    for module in (vae.encoder, vae.decoder):
        for resnet in (part for part in module.modules() if type(part).__name__ == "CogVideoXResnetBlock3D"):
            _zero(resnet.conv2.conv)
            if resnet.in_channels != resnet.out_channels:
                _pass(resnet.conv_shortcut)
    _start_encoder(vae.encoder)
    _start_decoder(vae.decoder)
    return vae


def _start_encoder(encoder: Any) -> None:
    """Average 2 x 2 twice (time is averaged by the architecture), keep the quarters apart, double, normalize, undo."""
    _zero(encoder.conv_in.conv)
    for color in range(COLORS):
        encoder.conv_in.conv.weight[color, color, -1, 1, 1] = 1
    halve, again, quarter = (block.downsamplers[0].conv for block in encoder.down_blocks[:3])
    for conv in (halve, again):
        _zero(conv)
        for color in range(COLORS):
            conv.weight[color, color, :2, :2] = 0.25
    _zero(quarter)
    for signal in range(SIGNALS):
        color, row, column = signal // 4, signal // 2 % 2, signal % 2
        quarter.weight[signal, color, row, column] = 1
    doubled = encoder.down_blocks[3].resnets[0].conv_shortcut
    _double(doubled, SIGNALS)
    constants = doubled.out_channels - 2 * SIGNALS
    encoder.norm_out.weight.fill_(CONSTANT * (constants / doubled.out_channels) ** 0.5)
    _undouble(encoder.conv_out.conv, SIGNALS, GAIN)
    encoder.conv_out.conv.bias[len(encoder.conv_out.conv.bias) // 2 :] = LOG_VARIANCE


def _start_decoder(decoder: Any) -> None:
    """Quarters back in their places, smoothed; then blocks of equal pixels; doubled, normalized and undone again."""
    _zero(decoder.conv_in.conv)
    for signal in range(SIGNALS):
        decoder.conv_in.conv.weight[signal, signal, -1, 1, 1] = 1 / GAIN
    place, spread, last = (block.upsamplers[0].conv for block in decoder.up_blocks[:3])
    _zero(place)
    for signal in range(SIGNALS):
        color, row, column = signal // 4, signal // 2 % 2, signal % 2
        rows, columns = (torch.tensor(RIGHT if side else LEFT) for side in (row, column))
        place.weight[color, signal] = rows[:, None] * columns
    _pass(spread)
    _double(last, COLORS)
    constants = last.out_channels - 2 * COLORS
    decoder.norm_out.norm_layer.weight.fill_(CONSTANT * (constants / last.out_channels) ** 0.5)
    for conv, value in ((decoder.norm_out.conv_y.conv, 1.0), (decoder.norm_out.conv_b.conv, 0.0)):
        _zero(conv)
        conv.bias.fill_(value)
    _undouble(decoder.conv_out.conv, COLORS, 1.0)


def _zero(conv: Any) -> None:
    for value in conv.parameters():
        value.zero_()


def _pass(conv: Any) -> None:
    """Every input channel that has an output of its own, unchanged."""
    _zero(conv)
    for channel in range(min(conv.in_channels, conv.out_channels)):
        _center(conv)[channel, channel] = 1


def _double(conv: Any, signals: int) -> None:
    """x, -x for each signal; then constants of alternating sign."""
    _zero(conv)
    for signal in range(signals):
        _center(conv)[2 * signal, signal] = 1
        _center(conv)[2 * signal + 1, signal] = -1
    conv.bias[2 * signals :: 2] = CONSTANT
    conv.bias[2 * signals + 1 :: 2] = -CONSTANT


def _undouble(conv: Any, signals: int, gain: float) -> None:
    _zero(conv)
    for signal in range(signals):
        _center(conv)[signal, 2 * signal] = gain
        _center(conv)[signal, 2 * signal + 1] = -gain


def _center(conv: Any) -> Tensor:
    """The weights that see only the pixel itself, now: out x in."""
    weight = conv.weight
    if weight.ndim == 5:
        weight = weight[:, :, -1]
    return weight[:, :, weight.shape[-2] // 2, weight.shape[-1] // 2]
