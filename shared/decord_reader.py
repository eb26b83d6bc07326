"""decord behind the call of `shared.video.read`: for those who have tuned it. It guesses where PyAV checks, so that it is held
against the index of the file, and refused where it cannot be exact."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from shared import buckets, files
from shared.video import Video

_AT_ONCE = 8
"""Frames decoded before they are fitted."""
_SAME_SECONDS = 0.002
"""decord gives times in single precision."""


def read(
    video: Video, wanted: Int64[np.ndarray, " N"], fit: Callable[[np.ndarray], np.ndarray] | None
) -> UInt8[np.ndarray, "N H W 3"]:
    """RGB of these frames. Raises ValueError where decord is missing, fails, or disagrees with the times of the packets."""
    try:
        import decord
    except ImportError:
        raise ValueError(
            "decoder: decord asks for the package decord (Linux on x86-64 only): pip install decord, or decoder: pyav"
        ) from None
    if video.sequential or not video.plain_seeks:
        why = "not seekable" if video.sequential else "a container without an index or open groups of pictures"
        raise ValueError(f"{video.uri}: {why}, where decord gives wrong frames: use decoder: pyav")
    source = files.open_input(video.uri) if files.is_remote(video.uri) else buckets.split(video.uri)[1]
    try:
        reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        _agrees(video, reader, wanted)
        pictures = []
        for start in range(0, len(wanted), _AT_ONCE):
            batch = reader.get_batch(wanted[start : start + _AT_ONCE].tolist()).asnumpy()
            pictures += [fit(rgb) if fit else rgb for rgb in batch]
    except (decord.DECORDError, RuntimeError) as error:
        raise ValueError(
            f"{video.uri}: decord fails ({str(error).splitlines()[-1].strip()}): use decoder: pyav"
        ) from None
    return np.stack(pictures)


def _agrees(video: Video, reader: Any, wanted: Int64[np.ndarray, " N"]) -> None:
    if len(reader) != video.num_frames:
        raise ValueError(
            f"{video.uri}: decord counts {len(reader)} frames, expected the {video.num_frames} that are shown: use decoder: pyav"
        )
    times = reader.get_frame_timestamp(np.append(wanted, 0).tolist())[:, 0].astype(np.float64)
    off = np.abs((times[:-1] - times[-1]) - video.seconds[wanted]).max()
    if off > _SAME_SECONDS:
        raise ValueError(
            f"{video.uri}: decord's frames are {off:.3f} s off, expected the packets' times: use decoder: pyav"
        )
