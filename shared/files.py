"""Local paths and buckets behind one set of calls: list, read ranges, write whole or not at all.

Uris and the environment variables that configure buckets: see `shared.buckets`.

What cannot be done raises ValueError (`NotFound` where there is no such file): one sentence that begins with the uri. Errors that
may pass are tried again.
"""

import contextlib
import functools
import io
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from shared.buckets import NotFound, Settings, Uri, connect, persistently, plainly, resolve, settings, split

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

READ_AHEAD_BYTES = 1 << 20
"""What `open_input` fetches at once from a bucket."""
OPEN_HANDLES = 128
"""Files kept open for range reads, in each process."""
STALE_SECONDS = 3600.0
"""A temporary of another machine that nobody touched for so long is a dead writer's."""

__all__ = ["NotFound", "Uri", "resolve"]  # and all that follows

_HIDDEN = re.compile(r"(^|/)\.")
_SIGNS = re.compile(r"[*?\[]")
_SIGN_OR_LETTER = re.compile(r"\*\*/|\*\*|\[!?[^\]/]+\]|.", re.DOTALL)
_TEMPORARY = re.compile(r"^\..+\.tmp-(?P<host>[^-]+)-(?P<pid>\d+)-\d+$")


def is_remote(uri: Uri) -> bool:
    """In a bucket: reads cost a round trip, writes appear when closed."""
    return split(uri)[0] != "file"


def join(folder: Uri, *names: str) -> str:
    """The uri of a name below a folder; a first name that is absolute (a path or a uri) stands by itself."""
    if names and (names[0].startswith("/") or "://" in names[0]):
        return "/".join(names)
    return "/".join([os.fspath(folder).rstrip("/"), *names])


def exists(uri: Uri) -> bool:
    """Whether there is a file or folder."""
    return _info(uri).type.name != "NotFound"


def is_folder(uri: Uri) -> bool:
    return _info(uri).type.name == "Directory"


def size(uri: Uri) -> int:
    """Bytes. Raises NotFound where there is no such file."""
    return _file_info(uri).size


def identity(uri: Uri) -> str:
    """What changes if the content does: size, and in a bucket the etag. It survives a copy to another folder or machine."""
    if not is_remote(uri):
        return str(size(uri))
    handle = _opened(uri)
    metadata = handle.metadata()
    return f"{handle.size()}-{(metadata.get(b'ETag') or metadata.get(b'etag') or b'').decode().strip(chr(34))}"


def list_files(uri: Uri, suffixes: Collection[str] = ()) -> Iterator[str]:
    """Uris of the files below a folder, in the order of their names; a file itself; or what a pattern with * ? [ ] ** matches.

    Suffixes (`.mp4`) are compared without regard to case; names that begin with a dot are passed over; local files come out as
    paths. Folders are listed one by one as they are reached: in memory are the names of one folder at each depth, never the tree
    (s3: 0.7 kB a name, as pyarrow lists a folder at once; gs: it lists the tree at once).
    """
    path = split(uri)[1]
    text = path if os.fspath(uri).startswith("file://") else os.fspath(uri).rstrip("/") or "/"
    if _SIGNS.search(text) and not exists(text):
        yield from _matching(text, suffixes)
        return
    info = _info(text)
    if info.type.name == "NotFound":
        raise NotFound(f"{text}: no such file or folder")
    if info.type.name == "File":
        if _wanted(info.base_name, suffixes):
            yield text
        return
    yield from _below(text, suffixes, ())


def list_folder(uri: Uri) -> list[str]:
    """Sorted names in one folder; those of folders end in a slash, hidden ones are passed over."""
    return _names(os.fspath(uri).rstrip("/") or "/")


def open_input(uri: Uri) -> io.BufferedReader:
    """A seekable file; from buckets in ranges of READ_AHEAD_BYTES, each tried again on errors that may pass."""
    if not is_remote(uri):
        with plainly(uri, "read"):
            return open(split(uri)[1], "rb")
    return io.BufferedReader(_Ranges(uri), READ_AHEAD_BYTES)


def read_bytes(uri: Uri) -> bytes:
    """The whole file."""
    if not is_remote(uri):
        with plainly(uri, "read"), open(split(uri)[1], "rb") as file:
            return file.read()
    return open_input(uri).read()


def read_range(uri: Uri, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length), through a handle that stays open. Threads may call it at once.

    It is for files that are written once: an object that another process replaces keeps, here, the size it had. Raises ValueError
    if the file ends before: it is torn, or the index is another's.
    """
    data = read_up_to(uri, offset, length)
    if len(data) != length:
        raise ValueError(f"{os.fspath(uri)}: ends after {len(data)} of {length} bytes at {offset}")
    return data


def read_up_to(uri: Uri, offset: int, length: int) -> bytes:
    """As `read_range`, but fewer bytes where the file ends before."""
    return persistently(uri, "read", lambda: _read_at(uri, offset, length))


def write_whole(uri: Uri, content: bytes | Callable[[BinaryIO], None]) -> None:
    """A file that is there whole or not at all, whatever kills the writer; folders are made as needed.

    Locally: a temporary beside it, synced, renamed. In a bucket: sent in one call, from a local temporary if `content` is a
    function, and visible when that is complete.
    """
    if is_remote(uri):
        _write_remote(uri, content)
    else:
        with plainly(uri, "write"):
            _write_local(split(uri)[1], content)


def remove(uri: Uri) -> None:
    """Removes a file if it is there."""
    filesystem, path = resolve(uri)

    def delete() -> None:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(path)

    if exists(uri):
        persistently(uri, "remove", delete)
        _remote_handle.cache_clear()


def check_writable(folder: Uri) -> None:
    """Writes, rereads and removes a small file; raises ValueError with the reason if that does not work."""
    probe = join(folder, f"worldreel-write-check-{socket.gethostname()}-{os.getpid()}")
    content = os.urandom(64)
    try:
        write_whole(probe, content)
        found = read_bytes(probe)
        remove(probe)
    except ValueError as error:  # names the probe, of which nobody has heard
        raise ValueError(str(error).replace(os.fspath(probe), os.fspath(folder), 1)) from None
    if found != content:
        raise ValueError(
            f"{os.fspath(folder)}: returned other bytes than were written; "
            "some servers need AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        )


def sweep(folder: Uri) -> int:
    """Removes what killed writers left in a local folder: temporaries whose process is gone, or that are an hour old."""
    scheme, path = split(folder)
    if scheme != "file" or not os.path.isdir(path):
        return 0
    dead = [entry.path for entry in os.scandir(path) if _is_dead(entry)]
    for temporary in dead:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return len(dead)


class _Ranges(io.RawIOBase):
    """A file in a bucket, read by ranges."""

    def __init__(self, uri: Uri) -> None:
        self._uri, self._handle, self._position = uri, _opened(uri), 0
        self._size = self._handle.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readall(self) -> bytes:
        length = max(0, self._size - self._position)
        data = persistently(self._uri, "read", lambda: _part(self._handle, self._position, length))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = persistently(self._uri, "read", lambda: _part(self._handle, self._position, len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _info(uri: Uri) -> "FileInfo":
    filesystem, path = resolve(uri)
    return persistently(uri, "read", lambda: filesystem.get_file_info(path))


def _file_info(uri: Uri) -> "FileInfo":
    info = _info(uri)
    if info.type.name != "File":
        raise NotFound(f"{os.fspath(uri)}: no such file" + (", but a folder" if info.type.name == "Directory" else ""))
    return info


def _below(folder: str, suffixes: Collection[str], ancestors: tuple[str, ...]) -> Iterator[str]:
    real = folder if is_remote(folder) else os.path.realpath(split(folder)[1])
    if real in ancestors:
        return  # a link back to where we came from
    for name in _names(folder):
        if name.endswith("/"):
            yield from _below(join(folder, name[:-1]), suffixes, (*ancestors, real))
        elif _wanted(name, suffixes):
            yield join(folder, name)


def _names(folder: str) -> list[str]:
    """Sorted names in a folder; those of folders end in a slash, so that files come out in the order of their whole paths."""
    if is_remote(folder):
        from pyarrow import fs

        filesystem, path = resolve(folder)
        # Google's: pyarrow sees only folders that are objects themselves, so all below is listed at once
        selector = fs.FileSelector(path, recursive=filesystem.type_name == "gcs")
        infos = persistently(folder, "list", lambda: filesystem.get_file_info(selector))
        start = len(path) + 1
        names = (info.path[start:] + "/" * (info.type == fs.FileType.Directory) for info in infos)
        if selector.recursive:
            names = (name for name in names if not name.endswith("/"))
    else:
        with plainly(folder, "list"), os.scandir(split(folder)[1]) as entries:
            names = [entry.name + "/" * entry.is_dir() for entry in entries if entry.is_dir() or entry.is_file()]
    return sorted(name for name in names if name and not _HIDDEN.search(name))


def _matching(pattern: str, suffixes: Collection[str]) -> Iterator[str]:
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if _SIGNS.search(part))
    base = "/".join(parts[:fixed]) or ("/" if fixed else ".")
    if not exists(base):
        raise NotFound(f"{pattern}: no such folder as {base}")
    prefix = len(base.rstrip("/")) + 1
    wanted = re.compile(_SIGN_OR_LETTER.sub(_regex, "/".join(parts[fixed:])), re.DOTALL)
    for uri in _below(base, suffixes, ()):
        if wanted.fullmatch(uri[prefix:]):
            yield uri if fixed else uri.removeprefix("./")


def _regex(found: re.Match[str]) -> str:
    """`**` stands for any number of folders; the other signs stay within one name."""
    sign = found[0]
    if sign[0] == "[" and sign[1:]:
        letters = sign[1:-1].replace("\\", r"\\").replace("^", r"\^")
        return f"[^/{letters[1:]}]" if letters[0] == "!" else f"[{letters}]"
    return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(sign) or re.escape(sign)


def _wanted(name: str, suffixes: Collection[str]) -> bool:
    return not suffixes or name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def _read_at(uri: Uri, offset: int, length: int) -> bytes:
    scheme, path = split(uri)
    if scheme != "file":
        return _part(_remote_handle(scheme, path, os.getpid(), settings(scheme)), offset, length)
    stat = os.stat(path)
    return _local_handle(path, stat.st_ino, stat.st_mtime_ns, stat.st_size).read_at(length, offset)


def _part(handle: Any, offset: int, length: int) -> bytes:
    there = min(length, handle.size() - offset)
    return handle.read_at(there, offset) if there > 0 else b""  # some servers refuse an empty range


def _opened(uri: Uri) -> Any:
    filesystem, path = resolve(uri)
    return persistently(uri, "read", lambda: filesystem.open_input_file(path))


@functools.lru_cache(maxsize=OPEN_HANDLES)
def _remote_handle(scheme: str, path: str, pid: int, found: Settings) -> Any:
    return connect(scheme, pid, found).open_input_file(path)


@functools.lru_cache(maxsize=OPEN_HANDLES)
def _local_handle(path: str, inode: int, mtime_ns: int, length: int) -> "_Descriptor":
    return _Descriptor(path)


class _Descriptor:
    """An open file that closes when its last reader lets go, so that dropping it from the cache never cuts a read short."""

    def __init__(self, path: str) -> None:
        self._number = -1
        self._number = os.open(path, os.O_RDONLY)

    def read_at(self, length: int, offset: int) -> bytes:
        data = os.pread(self._number, length, offset)
        while len(data) < length and (more := os.pread(self._number, length - len(data), offset + len(data))):
            data += more
        return data

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)


def _write_local(path: str, content: bytes | Callable[[BinaryIO], None]) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp-{_host()}-{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _write_remote(uri: Uri, content: bytes | Callable[[BinaryIO], None]) -> None:
    if callable(content):
        import pyarrow as pa

        with tempfile.NamedTemporaryFile(prefix="worldreel-") as file:
            with plainly(file.name, "write"):
                content(file)  # pyright: ignore[reportArgumentType]
                file.flush()
            with pa.memory_map(file.name) as staged:
                buffer = staged.read_buffer()
                persistently(uri, "write", lambda: _send(uri, buffer))
    else:
        persistently(uri, "write", lambda: _send(uri, content))


def _send(uri: Uri, content: Any) -> None:
    """In one call: an exception between two writes would close the stream, and so publish half of the object."""
    filesystem, path = resolve(uri)
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)
    _remote_handle.cache_clear()  # one of them may be of the object that was there before


def _is_dead(entry: "os.DirEntry[str]") -> bool:
    match = _TEMPORARY.match(entry.name)
    if match is None:
        return False
    try:
        if match["host"] == _host() and not _runs(int(match["pid"])):
            return True
        return time.time() - entry.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
