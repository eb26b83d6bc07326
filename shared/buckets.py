"""Where a uri leads, how a bucket is reached, and what its errors mean.

A uri is a local path, `file://`, `s3://bucket/key` or `gs://bucket/key` (keys are taken as they stand, never percent-decoded).
Buckets are reached through pyarrow, configured by the environment alone:

* s3: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE` and the rest of the AWS chain;
  `AWS_REGION` or `AWS_DEFAULT_REGION`; `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` for other servers of the protocol.
* gs: `GOOGLE_APPLICATION_CREDENTIALS` and the rest of Google's chain; `STORAGE_EMULATOR_HOST` for an emulator (anonymous).
"""

import contextlib
import errno
import functools
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ATTEMPTS = 5
"""How often something is tried whose error may pass: a busy server, a lost connection."""
FIRST_WAIT_SECONDS = 0.2
"""Between the first two attempts, give or take a half; doubled after each."""

_GOOGLE_PATIENCE_SECONDS = 5.0  # of each attempt; its client would try for a quarter of an hour

Uri = str | os.PathLike[str]
Settings = tuple[str | None, ...]
T = TypeVar("T")

_TRANSIENT_ERRNOS = {errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}
_TRANSIENT_WORDS = re.compile(
    r"SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION|INTERNAL_FAILURE|UNAVAILABLE|HTTP status (5\d\d|429)"
    r"|curlCode|connection reset|broken pipe|timed? ?out|DEADLINE_EXCEEDED",
    re.I,
)
_DENIED_WORDS = re.compile(
    r"ACCESS_DENIED|HTTP status 40[13]|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED|UNAUTHENTICATED",
    re.I,
)
_MISSING_WORDS = re.compile(r"NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|HTTP status 404|does not exist", re.I)


class NotFound(ValueError):
    """There is no such file, folder or bucket."""


def resolve(uri: Uri) -> "tuple[FileSystem, str]":
    """The file system and the path in it. Raises ValueError for other schemes than file, s3 and gs."""
    scheme, path = split(uri)
    return connect(scheme, os.getpid(), settings(scheme)), path


def split(uri: Uri) -> tuple[str, str]:
    """Scheme (file, s3, gs) and path, local ones absolute."""
    text = os.fspath(uri)
    scheme, colon, rest = text.partition("://")
    if not colon:
        return "file", os.path.abspath(text)
    if scheme == "file":
        return "file", unquote(urlsplit(text).path)
    if scheme not in ("s3", "gs"):
        raise ValueError(f"{text}: expected a local path, file://, s3:// or gs://")
    if not rest.strip("/"):
        raise ValueError(f"{text}: names no bucket")
    return scheme, rest.rstrip("/")


def settings(scheme: str) -> Settings:
    """What of the environment decides where a connection leads."""
    environment = os.environ.get
    if scheme == "s3":
        endpoint = environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL")
        region = environment("AWS_REGION") or environment("AWS_DEFAULT_REGION")
        # credentials are read by pyarrow itself; they are listed so that changed ones make a new connection
        return endpoint, region, environment("AWS_ACCESS_KEY_ID"), environment("AWS_PROFILE")
    if scheme == "gs":
        return environment("STORAGE_EMULATOR_HOST"), environment("GOOGLE_APPLICATION_CREDENTIALS")
    return ()


@functools.lru_cache(maxsize=16)
def connect(scheme: str, pid: int, found: Settings) -> "FileSystem":
    """One connection pool for each process (`pid`: they do not survive a fork)."""
    from pyarrow import fs  # not at the top: 0.2 s that commands without files do not need

    if scheme == "file":
        return fs.LocalFileSystem()
    place = found[0] or ""
    endpoint = urlsplit(place if "://" in place else f"http://{place}")
    if scheme == "gs":
        patience = timedelta(seconds=_GOOGLE_PATIENCE_SECONDS)
        if not place:
            return fs.GcsFileSystem(retry_time_limit=patience)
        emulator = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc}
        return fs.GcsFileSystem(anonymous=True, retry_time_limit=patience, **emulator)
    options: dict[str, Any] = {
        "allow_delayed_open": True,  # small objects in one request
        "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=2),  # of one part; whole operations: `persistently`
    }
    if found[1]:
        options["region"] = found[1]
    if place:
        options.setdefault("region", "us-east-1")  # or pyarrow would ask Amazon
        options |= {"endpoint_override": str(endpoint.netloc) + endpoint.path.rstrip("/"), "scheme": endpoint.scheme}
    return fs.S3FileSystem(**options)


def persistently(uri: Uri, verb: str, act: Callable[[], T]) -> T:
    """`act`, tried again with growing waits while its error may pass."""
    with plainly(uri, verb):
        for attempt in range(1, ATTEMPTS):
            try:
                return act()
            except OSError as error:
                if not _may_pass(error):
                    raise
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return act()


def _may_pass(error: OSError) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return error.errno in _TRANSIENT_ERRNOS or bool(_TRANSIENT_WORDS.search(str(error)))


@contextlib.contextmanager
def plainly(uri: Uri, verb: str) -> Iterator[None]:
    """Errors of operating and storage systems as one sentence."""
    try:
        yield
    except OSError as error:
        text = " ".join(str(error).split())
        what = os.fspath(uri)
        if isinstance(error, FileNotFoundError) or _MISSING_WORDS.search(text):
            raise NotFound(f"{what}: no such file, folder or bucket") from None
        if isinstance(error, PermissionError) or error.errno == errno.EROFS or _DENIED_WORDS.search(text):
            raise ValueError(f"{what}: no right to {verb} it (check permissions or credentials)") from None
        reason = error.strerror if error.errno and error.strerror and len(error.strerror) < 80 else text
        raise ValueError(f"{what}: cannot {verb} it: {reason}") from None
