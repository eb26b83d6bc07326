"""TFRecord files and the `tf.train.Example`s in them, read without TensorFlow.

A record is its length (8 bytes), a checksum of these, its bytes, a checksum of them, all little-endian. A checksum is a CRC-32C,
turned right by 15 bits, plus a constant (TensorFlow, lib/io/record_writer.h). An Example is a protobuf message that maps names to
lists of bytes, of float32 or of int64 (TensorFlow, core/example/feature.proto).
"""

import functools
import struct
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64, UInt16, UInt32

from shared import files

_HEAD = struct.Struct("<QI")
_MASK = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78
_LANES, _LANE_BYTES = 4096, 64
"""The checksum of a block is computed of so many stretches of it at once."""
_BLOCK_BYTES = _LANES * _LANE_BYTES
_KINDS = {1: "bytes", 2: "float32", 3: "int64"}
_DECODED_BYTES = 1 << 20
"""Of whole numbers, at once: while they are decoded they take many times as much."""


def count(uri: str) -> int:
    """How many records a file holds; only their heads are read. One that ends early, or whose head is wrong, is counted too."""
    known = 0
    try:
        for _ in _places(uri):
            known += 1
    except ValueError:
        known += 1
    return known


def record(uri: str, number: int) -> memoryview:
    """The bytes of one record. Raises ValueError that names file and record if it is not there, torn, or fails its checksum."""
    for at, (offset, length) in enumerate(_places(uri)):
        if at < number:
            continue
        data = memoryview(files.read_up_to(uri, offset, length + 4))
        if len(data) < length + 4:
            raise ValueError(f"{uri}: record {number} is torn, {len(data)} of its {length + 4} bytes are there")
        if _masked(data[:length]) != int.from_bytes(data[length:], "little"):
            raise ValueError(f"{uri}: record {number} fails its checksum, the file is damaged")
        return data[:length]
    raise ValueError(f"{uri}: has no record {number}")


def _places(uri: str) -> Iterator[tuple[int, int]]:
    """Offset and length of the bytes of every record."""
    at = number = 0
    while head := files.read_up_to(uri, at, _HEAD.size):
        if len(head) < _HEAD.size:
            raise ValueError(f"{uri}: record {number} is torn, its head has {len(head)} of {_HEAD.size} bytes")
        length, told = _HEAD.unpack(head)
        if _masked(memoryview(head)[:8]) != told:
            raise ValueError(f"{uri}: the length of record {number} fails its checksum, expected a sound TFRecord file")
        yield at + _HEAD.size, length
        at += _HEAD.size + length + 4
        number += 1


def _masked(data: memoryview) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """Castagnoli's CRC, reflected, as in RFC 3720. Half a GB a second for what is long."""
    blocks = len(data) // _BLOCK_BYTES
    state = 0xFFFFFFFF
    if blocks:
        words = np.frombuffer(data, "<u2", blocks * _BLOCK_BYTES // 2).reshape(blocks, _LANES, -1)
        state = _of_blocks(words, state)
    table = _table(8).tolist()
    for byte in data[blocks * _BLOCK_BYTES :]:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ 0xFFFFFFFF


def _of_blocks(words: UInt16[np.ndarray, "B L W"], state: int) -> int:
    """The register after all blocks.

    Registers are linear in their bits: that of A then B is that of A moved over B's zeros, XOR that of B from 0. So every lane of a
    block has a register of its own, moved over the other lanes from one block to the next; in the end they are added up.
    """
    table = _table(16)
    across = _over_zeros(_BLOCK_BYTES - _LANE_BYTES)
    lanes = np.zeros(_LANES, np.uint32)
    for number, block in enumerate(words):
        if number:
            lanes = _moved(across, lanes)
        else:
            lanes[0] = state
        for word in np.ascontiguousarray(block.T):
            lanes = table[(lanes ^ word) & 0xFFFF] ^ lanes >> 16
    length = _LANE_BYTES
    while len(lanes) > 1:
        lanes = _moved(_over_zeros(length), lanes[::2]) ^ lanes[1::2]
        length *= 2
    return int(lanes[0])


@functools.cache
def _table(bits: int) -> UInt32[np.ndarray, " N"]:
    """The register that so many bits leave behind."""
    register = np.arange(1 << bits, dtype=np.uint32)
    for _ in range(bits):
        register = np.where(register & 1, register >> 1 ^ _POLYNOMIAL, register >> 1).astype(np.uint32)
    return register


@functools.cache
def _over_zeros(num_bytes: int) -> UInt32[np.ndarray, "4 256"]:
    """Where each byte of a register leads over so many zeros."""
    if num_bytes == 1:
        bytes_of = np.arange(256, dtype=np.uint32)
        registers = np.stack([bytes_of << 8 * place for place in range(4)])
        return _table(8)[registers & 0xFF] ^ registers >> 8
    half = _over_zeros(num_bytes // 2)
    twice = _moved(half, half)
    return _moved(_over_zeros(1), twice) if num_bytes % 2 else twice


def _moved(over: UInt32[np.ndarray, "4 256"], registers: UInt32[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape"]:
    first, second, third, fourth = (over[place][registers >> 8 * place & 0xFF] for place in range(4))
    return first ^ second ^ third ^ fourth


class Example:
    """Features by name. `where` names it in errors, all of which are ValueErrors."""

    def __init__(self, data: memoryview, where: str) -> None:
        self._where = where
        self._features: dict[str, tuple[int, memoryview]] = {}
        try:
            for features in _messages(data):
                for entry in _messages(features):
                    parts = dict(_fields(entry))  # 1: its name; 2: a message of one field, a list, numbered by its kind
                    for kind, values in _fields(parts[2]):
                        self._features[bytes(parts[1]).decode()] = kind, values
        except (ValueError, KeyError):
            raise ValueError(f"{where}: is no tf.train.Example") from None

    def __contains__(self, name: object) -> bool:
        """Whether it has this feature, with a value."""
        return name in self._features and len(self._features[str(name)][1]) > 0

    def pieces(self, name: str) -> list[memoryview]:
        """A list of bytes."""
        return self._list(name, "bytes")

    def floats(self, name: str) -> Float32[np.ndarray, " N"]:
        return np.concatenate([np.frombuffer(run, "<f4") for run in self._packed(name, "float32")])

    def integers(self, name: str) -> Int64[np.ndarray, " N"]:
        return np.concatenate([part for run in self._packed(name, "int64") for part in _integers(run)])

    def uint16s(self, name: str) -> UInt16[np.ndarray, " N"]:
        """Whole numbers of 16 bits, which lie in it as int64."""
        found = []
        for part in (part for run in self._packed(name, "int64") for part in _integers(run)):
            if part.min() < 0 or part.max() > 0xFFFF:
                raise ValueError(f"{self._where}: feature {name} holds numbers of more than 16 bits")
            found.append(part.astype(np.uint16))
        return np.concatenate(found)

    def _list(self, name: str, kind: str) -> list[memoryview]:
        if name not in self:
            raise ValueError(f"{self._where}: has no feature {name}")
        found, values = self._features[name]
        if _KINDS.get(found) != kind:
            raise ValueError(f"{self._where}: feature {name} holds {_KINDS.get(found, found)}, expected {kind}")
        try:
            return list(_messages(values))
        except ValueError as error:
            raise ValueError(f"{self._where}: feature {name} holds {error}, expected a list") from None

    def _packed(self, name: str, kind: str) -> list[memoryview]:
        """The numbers of a list, one after the other: all in one run, as every writer of Examples packs them."""
        runs = self._list(name, kind)
        whole = (len(run) % 4 == 0 if kind == "float32" else run[-1] < 0x80 for run in runs if len(run))
        if not all(whole):
            raise ValueError(f"{self._where}: feature {name} ends within a number")
        return runs


def _messages(data: memoryview) -> Iterator[memoryview]:
    """What field 1 of a message holds, each time that it is there."""
    return (value for number, value in _fields(data) if number == 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of a protobuf message's fields that have a length, as all of an Example's do."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 != 2:
            raise ValueError(f"a field of wire type {tag & 7}")
        length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError("a field that ends after its message")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A whole number in groups of 7 bits, the lowest first, and where it ends; the highest bit of a byte says that more follow."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")


def _integers(packed: memoryview) -> Iterator[Int64[np.ndarray, " N"]]:
    """A run of whole numbers, part by part."""
    data = np.frombuffer(packed, np.uint8)
    at = 0
    while at < len(data):
        last = np.flatnonzero(data[at : at + _DECODED_BYTES] < 0x80)
        first = np.concatenate(([0], last[:-1] + 1))
        part, at = data[at : at + int(last[-1]) + 1], at + int(last[-1]) + 1
        lengths = last - first + 1
        values = np.zeros(len(last), np.uint64)
        for place in range(int(lengths.max())):
            there = lengths > place
            values[there] |= (part[first[there] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
        yield values.view(np.int64)
