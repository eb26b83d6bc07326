"""Bytes and milliseconds a frame of every codec, against f16 in a compressed npz. Run: python tests/benchmarks/bench_codecs.py

On a rendered room of 49 frames at 240 x 360 with exact truth ("clean"), and with 0.2 % noise on depth, 0.05 px on flow ("noisy"),
a pessimistic stand-in for what networks predict. CPU milliseconds of this process; one thread.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import scene  # noqa: E402

from shared import codecs, shards  # noqa: E402


def npz_encode(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, a=array if array.dtype in (np.bool_, np.uint8, np.int32) else array.astype(np.float16))
    return file.getvalue()


def npz_decode(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data))["a"]


def milliseconds(act: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = act()
    return 1000 * (time.process_time() - start), result


def line(
    name: str, array: np.ndarray, encode: Callable[..., bytes], decode: Callable[[bytes], np.ndarray], unit: str
) -> None:
    encode_ms, data = milliseconds(lambda: encode(array))
    decode_ms, found = milliseconds(lambda: decode(data))
    _, npz = milliseconds(lambda: npz_encode(array))
    npz_ms, _ = milliseconds(lambda: npz_decode(npz))
    times = f"{encode_ms / len(array):9.2f}{decode_ms / len(array):9.2f}{npz_ms / len(array):9.2f}"
    print(f"{name:22}{len(data) / len(array):10.0f}{len(npz) / len(array):10.0f}{times}  {error(found, array, unit)}")


def error(found: np.ndarray, array: np.ndarray, unit: str) -> str:
    difference = np.abs(found.astype(np.float64) - array)
    if unit == "dB":
        return f"PSNR {10 * np.log10(255**2 / np.mean(difference**2)):.1f} dB" if difference.any() else "exact"
    if unit == "relative":
        difference = difference[array != 0] / np.abs(array[array != 0])
    return f"{difference.max(initial=0):.2g} {unit}"


def main() -> None:
    clip = scene.clip("orbit", frames=49, height=240, width=360)
    assert clip.depth is not None
    assert clip.flow is not None
    assert clip.motion is not None
    random = np.random.default_rng(0)
    z, flow, motion = clip.depth.z, clip.flow.forward, clip.motion
    noisy_z = (z * (1 + 0.002 * random.standard_normal(z.shape))).astype(np.float32)
    noisy_flow = (flow + 0.05 * random.standard_normal(flow.shape)).astype(np.float32)
    noisy_motion = (motion.scene_flow * (1 + 0.1 * random.standard_normal((*flow.shape[:-1], 1)))).astype(np.float32)
    uncertainty = np.abs(noisy_flow - flow).mean(axis=-1)
    points = clip.pointmap()
    print(f"{'':22}{'bytes':>10}{'f16 npz':>10}{'enc ms':>9}{'dec ms':>9}{'npz dec':>9}  largest error")
    depth, optical = (codecs.encode_depth, codecs.decode_depth), (codecs.encode_flow, codecs.decode_flow)
    scene_flow = codecs.encode_scene_flow, codecs.decode_scene_flow
    line("depth clean", z, *depth, "relative")
    line("depth noisy", noisy_z, *depth, "relative")
    line("flow clean", flow, *optical, "px")
    line("flow noisy", noisy_flow, *optical, "px")
    line("scene flow clean", motion.scene_flow, *scene_flow, "relative")
    line("scene flow noisy", noisy_motion, *scene_flow, "relative")
    line("dynamic", motion.dynamic, codecs.encode_mask, codecs.decode_mask, "wrong")
    line("uncertainty (noise)", uncertainty, codecs.encode_uncertainty, codecs.decode_uncertainty, "relative")
    line("points, dense", points, codecs.encode_points, codecs.decode_points, "m")
    for crf in (14, 0):
        line(f"rgb crf {crf}", clip.rgb, lambda rgb, crf=crf: codecs.encode_rgb(rgb, 8.0, crf), codecs.decode_rgb, "dB")
    for codec in ("compact", "plain"):
        encode_ms, members = milliseconds(lambda codec=codec: shards.encode(clip, shards.Store(codec=codec)))
        decode_ms, _ = milliseconds(lambda members=members: shards.decode(clip.id, members))
        total = sum(map(len, members.values())) / 1e6
        print(f"whole clip, {codec}: {total:.1f} MB, encode {encode_ms / 1e3:.2f} s, decode {decode_ms / 1e3:.2f} s")


if __name__ == "__main__":
    main()
