"""What must hold before the first clip: said in seconds, with the fix."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import numpy as np

from shared import files

_DECODERS = ("h264", "hevc", "vp9", "mpeg4", "mpeg2video")
_SMALLEST_FREE_GIB = 1.0


def check_output(out: str) -> None:
    """Writes, reads and removes a small file in OUT, and compares. Raises ValueError with the reason if that fails."""
    try:
        files.check_writable(out)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written to ({error.strerror or error})") from None


def check_room(spool: str, clip_bytes: int, workers: int) -> None:
    """Raises ValueError if the spool's disk cannot take a few clips for each worker."""
    if files.is_remote(spool):
        return
    os.makedirs(spool, exist_ok=True)
    free, needed = shutil.disk_usage(spool).free / 2**30, max(_SMALLEST_FREE_GIB, 4 * workers * clip_bytes / 2**30 / 10)
    if free < needed:
        raise ValueError(
            f"{spool}: {free:.1f} GiB are free, expected {needed:.1f} at least; set fleet.spool to a larger disk"
        )


def check_codecs() -> None:
    """Encodes a few frames as clips are stored and decodes them as videos are. Raises ValueError if FFmpeg lacks what it takes."""
    import av

    from shared import codecs

    missing = [name for name in _DECODERS if not _has_decoder(name)]
    if missing:
        raise ValueError(
            f"this build of PyAV cannot decode {', '.join(missing)}; install PyAV's own wheel: pip install av"
        )
    rgb = np.zeros((4, 32, 48, 3), np.uint8)
    rgb[:, :, 24:] = 200
    try:
        found = codecs.decode_rgb(codecs.encode_rgb(rgb, 8.0))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"this build of PyAV cannot write H.264 ({error}); install PyAV's own wheel: pip install av"
        ) from None
    if found.shape != rgb.shape or np.abs(found.astype(int) - rgb).mean() > 8:
        raise ValueError(
            "this build of PyAV writes H.264 that it does not read back; install PyAV's own wheel: pip install av"
        )


@contextlib.contextmanager
def alone(out: str) -> Iterator[None]:
    """One run at a time in one folder of this machine. Raises ValueError if there is another."""
    if files.is_remote(out):
        yield
        return
    import fcntl

    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"{out}: another run is at work here; wait for it, or end it") from None
    finally:
        os.close(folder)


def _has_decoder(name: str) -> bool:
    import av.codec.codec

    try:
        av.codec.Codec(name, "r")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
