"""Files of data sets, read from disk or bucket: pictures, arrays, tables. Every error names the file."""

import contextlib
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from shared import exr, files

_CHUNK = 1 << 20
_UNPACKED_BY_MAC = "__MACOSX/"
"""What macOS adds to a zip: the same folders once more, without what is in them."""


@contextlib.contextmanager
def plainly(uri: str, expected: str) -> Iterator[None]:
    """Turns what parsers raise into one sentence about the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        told = str(error)
        if uri in told:
            raise ValueError(told) from None
        raise ValueError(f"{uri}: expected {expected} ({type(error).__name__}: {told or 'torn'})") from None


def picture(uri: str) -> UInt8[np.ndarray, "H W 3"]:
    """A color picture as RGB."""
    return picture_of(files.read_bytes(uri), uri)


def picture_of(data: bytes, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """As `picture`, of what a file holds that `where` names."""
    import cv2

    found = _decoded(data, where, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(found[..., ::-1])


def pixels(uri: str) -> np.ndarray:
    """A picture exactly as it is stored (bits and channels); color comes out in the file's order: RGB, RGBA."""
    return pixels_of(files.read_bytes(uri), uri)


def pixels_of(data: bytes, where: str) -> np.ndarray:
    """As `pixels`, of what a file holds that `where` names."""
    import cv2

    found = _decoded(data, where, cv2.IMREAD_UNCHANGED)
    if found.ndim == 3 and found.shape[2] >= 3:
        found = found[..., [2, 1, 0, *range(3, found.shape[2])]]
    return np.ascontiguousarray(found)


def indexes(uri: str) -> np.ndarray:
    """A picture with a palette as the numbers that point into it; one without as it is."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(files.read_bytes(uri))) as image:
            found = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{uri}: not a picture that can be decoded ({type(error).__name__})") from None
    return found.astype(np.int32) if found.ndim == 2 else colors_as_ids(found[..., :3])


def uint16(uri: str) -> np.ndarray:
    """A picture of 16 bits a channel. Raises ValueError for one of 8: it was converted, and its values are lost."""
    found = pixels(uri)
    if found.dtype != np.uint16:
        raise ValueError(f"{uri}: holds {found.dtype}, expected 16 bits a pixel")
    return found


def _decoded(data: bytes, where: str, mode: int) -> np.ndarray:
    import cv2

    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
    except cv2.error:
        found = None
    if found is None:
        raise ValueError(f"{where}: not a picture that can be decoded")
    return found


def colors_as_ids(rgb: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
    """One number a color, the same in every frame; black is 0."""
    r, g, b = (rgb[..., k].astype(np.int32) for k in range(3))
    return r << 16 | g << 8 | b


def exr_channel(uri: str, names: Sequence[str]) -> np.ndarray:
    """The first of these channels that an OpenEXR file has, or its only one."""
    with plainly(uri, "an OpenEXR image"):
        channels = exr.read(files.read_bytes(uri))
    by_name = {name.rpartition(".")[2].lower(): values for name, values in channels.items()}
    for name in names:
        if name.lower() in by_name:
            return by_name[name.lower()]
    if len(channels) != 1:
        raise ValueError(f"{uri}: its channels are {', '.join(channels)}, expected {' or '.join(names)}")
    return next(iter(channels.values()))


def array(uri: str) -> np.ndarray:
    """An .npy file, or the only array of an .npz. Nothing is unpickled."""
    with plainly(uri, "a numpy array"):
        found = np.load(io.BytesIO(files.read_bytes(uri)), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        return found[found.files[0]]


def npz_names(uri: str) -> list[str]:
    """Names of the arrays in an .npz."""
    with plainly(uri, "an npz archive"), files.open_input(uri) as file, zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def npz_shape(uri: str, name: str) -> tuple[int, ...] | None:
    """Shape of one array; None if it holds Python objects, which are never unpickled."""
    with plainly(uri, f"an array {name}"), _member(uri, name) as stream:
        shape, _, dtype = _header(stream)
        return None if dtype.hasobject else shape


def npz_rows(uri: str, name: str, rows: Int64[np.ndarray, " T"]) -> np.ndarray:
    """These rows of one array of an .npz, which is streamed: memory holds no more than they take. Rows may come in any order.

    (All of it where it was stored by columns.)
    """
    with plainly(uri, f"an array {name} with row {int(rows.max(initial=0))}"), _member(uri, name) as stream:
        shape, fortran, dtype = _header(stream)
        if dtype.hasobject:
            raise ValueError(f"{uri}: array {name} holds objects, expected numbers")
        if not len(rows):
            return np.empty((0, *shape[1:]), dtype)
        if rows.min() < 0 or rows.max() >= shape[0]:
            raise ValueError(f"{uri}: array {name} has {shape[0]} rows, frame {int(rows.max())} asks for more")
        num_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        if fortran:  # as what was transposed is stored: its rows lie all over the file
            return np.frombuffer(_exactly(stream, shape[0] * num_bytes), dtype).reshape(shape, order="F")[rows]
        wanted = {int(row): None for row in np.unique(rows)}
        found: dict[int, np.ndarray] = {}
        at = 0
        for row in wanted:
            _skip(stream, (row - at) * num_bytes)
            found[row] = np.frombuffer(_exactly(stream, num_bytes), dtype).reshape(shape[1:])
            at = row + 1
        return np.stack([found[int(row)] for row in rows])


@contextlib.contextmanager
def _member(uri: str, name: str) -> Iterator[Any]:
    with files.open_input(uri) as file, zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
        yield stream


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    return read(stream)


def _skip(stream: Any, num_bytes: int) -> None:
    while num_bytes > 0:
        got = len(stream.read(min(num_bytes, _CHUNK)))
        if not got:
            raise EOFError
        num_bytes -= got


def _exactly(stream: Any, num_bytes: int) -> bytes:
    data = stream.read(num_bytes)
    if len(data) != num_bytes:
        raise EOFError
    return data


def document(uri: str) -> Any:
    """A JSON file."""
    with plainly(uri, "JSON"):
        return json.loads(files.read_bytes(uri))


def gzipped_items(uri: str) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped JSON list, one after the other: the list never lies in memory."""
    decoder = json.JSONDecoder()
    with plainly(uri, "a gzipped JSON list"), files.open_input(uri) as packed, gzip.open(packed, "rt") as stream:
        text, at = stream.read(_CHUNK), 0
        while True:
            at = _past(text, at)
            if at < len(text) and text[at] == "]":
                return
            try:
                item, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                more = stream.read(_CHUNK)
                if not more:
                    raise
                text, at = text[at:] + more, 0
                continue
            if end == len(text) and (more := stream.read(_CHUNK)):
                text += more
            yield item
            at = end


def _past(text: str, at: int) -> int:
    """Where the next item begins: behind blanks, commas and the opening bracket."""
    while at < len(text) and text[at] in " \t\r\n,[":
        at += 1
    return at


def table(uri: str) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; names of columns are in lower case, letters and digits only."""
    with plainly(uri, "a CSV table"):
        rows = list(csv.reader(io.StringIO(files.read_bytes(uri).decode("utf-8-sig"))))
        names = [plain(name) for name in rows[0]]
        return [dict(zip(names, row)) for row in rows[1:] if row]


def plain(name: str) -> str:
    """`Metric Scale` and `metric_scale` are one name."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def numbers(uri: str, *, skip: int = 0) -> np.ndarray:
    """Lines of numbers parted by blanks, as float64 rows."""
    with plainly(uri, "lines of numbers"):
        lines = files.read_bytes(uri).decode().splitlines()[skip:]
        return np.array([[float(word) for word in line.replace(",", " ").split()] for line in lines if line.strip()])


def folder(uri: str) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    return files.list_folder(uri) if files.exists(uri) else []


def folders_in(uri: str) -> list[str]:
    """Names of the folders in a folder, without what macOS adds to what it packs."""
    return [name[:-1] for name in folder(uri) if name.endswith("/") and name != _UNPACKED_BY_MAC]


def first_size(uri: str) -> tuple[int, int]:
    """Height and width of a picture."""
    height, width = picture(uri).shape[:2]
    return height, width


def numbered(folder: str, name: Callable[[str], str | None]) -> dict[int, str]:
    """Frame number -> file name, for the files of a folder whose names hold one. `name` takes the digits out; None: no frame."""
    found = {}
    for file in files.list_folder(folder) if files.exists(folder) else ():
        digits = name(file)
        if digits is not None:
            found[int(digits)] = file
    return dict(sorted(found.items()))


def last_number(file: str) -> str | None:
    """The digits before the ending: `depth_00012.png` is frame 12."""
    found = re.search(r"(\d+)\.\w+$", file)
    return found[1] if found else None


def between(start: str, *ends: str) -> Callable[[str], str | None]:
    """Takes the digits out of `{start}{digits}{end}`; an end may be in capitals."""

    def digits(file: str) -> str | None:
        for end in ends:
            if file.startswith(start) and file.lower().endswith(end):
                middle = file[len(start) : len(file) - len(end)]
                if middle.isdigit():
                    return middle
        return None

    return digits


def scenes_below(root: str, is_scene: Callable[[list[str]], bool], depth: int = 4) -> Iterator[str]:
    """Folders that hold what makes a scene, in order. Only names of folders above them are listed."""
    names = files.list_folder(root)
    if is_scene(names):
        yield root.rstrip("/")
    elif depth:
        for name in folders_in(root):
            yield from scenes_below(files.join(root, name), is_scene, depth - 1)


def run_lengths(counts: str | Sequence[int], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """A COCO mask: runs of 0 and 1 in turn, down the columns. As text it is packed in letters of 5 bits and a sign."""
    runs = _unpacked(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"a mask of {int(runs.sum())} pixels, expected {height} x {width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _unpacked(text: str) -> np.ndarray:
    """Little-endian groups of 5 bits, the 6th says that more follow; from the fourth run on, differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return np.array(runs, np.int64)


def first_of(row: Mapping[str, str], *names: str) -> str:
    """The first of these columns that a table's row fills; "" if none."""
    return next((row[plain(name)] for name in names if row.get(plain(name))), "")
