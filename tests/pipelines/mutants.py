"""Video files that are not what they should be."""

import random
import struct
from pathlib import Path


def mutant(number: int, good: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A name and bytes made from a good mp4: flipped, cut, emptied, misnamed, or lying about its size."""
    kind = ("flip", "many", "cut", "zeros", "hole", "text", "wrong", "huge", "empty", "swap")[number % 10]
    data = bytearray(good)
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "many":
        for _ in range(len(data) // 50):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "cut":
        data = data[: rng.randrange(1, len(data))]
    elif kind == "zeros":
        data = bytearray(len(data))
    elif kind == "hole":
        start = rng.randrange(len(data))
        data[start : start + 400] = bytes(len(data[start : start + 400]))
    elif kind == "text":
        data = bytearray(b"this is not a video\n" * 50)
    elif kind == "wrong":
        return f"{kind}_{number:03d}.{rng.choice(('avi', 'webm', 'ts', 'mpg'))}", bytes(data)
    elif kind == "huge":
        data = bytearray(huge(bytes(data), rng))
    elif kind == "empty":
        data = bytearray()
    else:
        middle = rng.randrange(len(data))
        data = data[middle:] + data[:middle]
    return f"{kind}_{number:03d}.mp4", bytes(data)


def huge(good: bytes, rng: random.Random) -> bytes:
    """The same file, whose boxes declare gigabytes, a million frames, or a picture of 65535 pixels a side."""
    data = bytearray(good)
    what = rng.choice((b"stsz", b"avc1", b"tkhd", b"mdat", b"stco"))
    place = data.find(what)
    if place < 0:
        return bytes(data)
    if what == b"avc1":  # width and height of the sample entry
        data[place + 28 : place + 32] = struct.pack(">HH", 65535, 65535)
    elif what == b"tkhd":
        data[place + 80 : place + 88] = struct.pack(">II", 65535 << 16, 65535 << 16)
    elif what == b"mdat":
        data[place - 4 : place] = struct.pack(">I", 0xFFFFFFF0)
    else:  # how many samples or chunks there are
        at = place + (12 if what == b"stsz" else 8)
        data[at : at + 4] = struct.pack(">I", rng.choice((1_000_000, 0x7FFFFFFF, 0xFFFFFFFF)))
    return bytes(data)


def folder(path: Path, good: list[bytes], count: int, seed: int = 0) -> list[str]:
    """Writes so many of them; their names."""
    rng = random.Random(seed)
    names = []
    for number in range(count):
        name, data = mutant(number, rng.choice(good), rng)
        (path / name).write_bytes(data)
        names.append(name)
    return names
