"""Samples a second: our byte ranges against webdataset 1.0.2, on the same shards. Run: python tests/benchmarks/bench_reader.py

Two shards of clips of 12 MB (what 49 frames at 480x720 take), read raw, without decoding. "curated quarter": every fourth clip,
and of it only the members that the generator's stage needs. Then the same quarter from an object store, 30 ms a request.
Samples per CPU second stand beside: on a machine that does other work as well, only they mean something.
"""

import argparse
import mmap
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[2])]

import webdataset  # noqa: E402

from shared import files, shards  # noqa: E402
from shared.members import is_part  # noqa: E402
from train.stages import Generator  # noqa: E402

MEMBERS = {
    "json": 4_000, "rgb.mp4": 1_900_000, "depth.wrz": 2_400_000, "flow.forward.wrz": 3_000_000,
    "flow.backward.wrz": 3_000_000, "cameras.npz": 6_000, "motion.dynamic.wrz": 20_000, "motion.scene_flow.wrz": 700_000,
    "key_flow.forward.wrz": 600_000, "key_flow.backward.wrz": 600_000,
}  # fmt: skip
LATENCY_SECONDS = 0.03


def write(folder: Path, num_shards: int, per_shard: int) -> list[dict[str, Any]]:
    dice = random.Random(0)
    for shard in range(num_shards):
        items = []
        for number in range(per_shard):
            clip_id = f"clip{shard}{number:04d}"
            items.append(
                (clip_id, {name: dice.randbytes(size) for name, size in MEMBERS.items()}, {"status": "annotated"})
            )
        shards.write_shard(folder, f"x-{shard:06d}", items)
    return shards.read_index(folder).to_pylist()


def warm(folder: Path) -> None:
    for tar in folder.glob("*.tar"):
        tar.read_bytes()


def cold(folder: Path) -> None:
    for tar in folder.glob("*.tar"):
        handle = os.open(tar, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


class Rate(NamedTuple):
    per_second: float
    per_cpu_second: float


def rate(act: Callable[..., int], *inputs: Any, **how: Any) -> Rate:
    started, cpu = time.perf_counter(), time.process_time()
    num = act(*inputs, **how)
    return Rate(num / (time.perf_counter() - started), num / (time.process_time() - cpu))


def by_webdataset(folder: Path, wanted: set[str] | None = None, parts: Iterable[str] | None = None) -> int:
    """As its users read: tars in order; what is not wanted is passed over by its own `select_files`."""

    def select(name: str) -> bool:
        clip_id, _, suffix = name.partition(".")
        return (wanted is None or clip_id in wanted) and is_part(suffix, tuple(parts) if parts else None)

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, select_files=select, empty_check=False)
    return sum(1 for _ in dataset)


def by_ranges(root: str, rows: list[dict[str, Any]], parts: Iterable[str], threads: int) -> int:
    wanted = tuple(parts)

    def fetch(row: dict[str, Any]) -> dict[str, bytes]:
        return shards.read_members(root, row, wanted)

    with ThreadPoolExecutor(threads) as pool:
        return sum(1 for _ in (pool.map(fetch, rows) if threads > 1 else map(fetch, rows)))


def by_map(folder: Path, rows: list[dict[str, Any]], parts: Iterable[str], *, verify: bool) -> int:
    """Mapped into memory: nothing is copied. Every page is touched; or every byte, as a reader that verifies checksums does."""
    maps = {}
    for shard in {str(row["shard"]) for row in rows}:
        with (folder / shard).open("rb") as file:
            maps[shard] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    for row in rows:
        for part in row["parts"]:
            if is_part(part["name"], list(parts)):
                data = memoryview(maps[str(row["shard"])])[part["offset"] : part["offset"] + part["size"]]
                zlib.crc32(data) if verify else sum(data[:: mmap.PAGESIZE])
    return len(rows)


def by_verified_ranges(root: str, rows: list[dict[str, Any]], parts: Iterable[str]) -> int:
    """As training does: each member's checksum is compared when it is decoded."""
    for row in rows:
        for member in shards.read_members(root, row, tuple(parts)).values():
            zlib.crc32(member)
    return len(rows)


def by_copy(folder: Path, rows: list[dict[str, Any]], parts: Iterable[str]) -> int:
    """The same bytes into one buffer that is there already, a system call a sample: more, no reader that copies can give."""
    handles = {str(row["shard"]): os.open(folder / row["shard"], os.O_RDONLY) for row in rows}
    spans = []
    for row in rows:
        wanted = [part for part in row["parts"] if is_part(part["name"], list(parts))]
        first = min(part["offset"] for part in wanted)
        spans.append((str(row["shard"]), first, max(part["offset"] + part["size"] for part in wanted) - first))
    buffer = memoryview(bytearray(max(length for _, _, length in spans)))
    for shard, first, length in spans:
        os.preadv(handles[shard], [buffer[:length]], first)
    for handle in handles.values():
        os.close(handle)
    return len(rows)


def by_member(root: str, rows: list[dict[str, Any]], parts: Iterable[str]) -> int:
    """A new handle for every member."""
    for row in rows:
        for part in row["parts"]:
            if is_part(part["name"], list(parts)):
                filesystem, path = files.resolve(f"{root}/{row['shard']}")
                with filesystem.open_input_file(path) as file:
                    file.read_at(part["size"], part["offset"])
    return len(rows)


class Store(BaseHTTPRequestHandler):
    """As much of S3 as reading takes, LATENCY_SECONDS away."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        time.sleep(LATENCY_SECONDS)
        self._head(200, (self.folder / Path(self.path).name).stat().st_size)

    def do_GET(self) -> None:
        time.sleep(LATENCY_SECONDS)
        path = self.folder / Path(self.path).name
        first, last = 0, path.stat().st_size - 1
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or last)
        self._head(206, last - first + 1, f"bytes {first}-{last}/{path.stat().st_size}")
        with path.open("rb") as file:
            os.sendfile(self.wfile.fileno(), file.fileno(), first, last - first + 1)

    def _head(self, status: int, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path, ports: "multiprocessing.Queue[int]") -> None:
    """In a process of its own, so that it takes nothing of the reader's time."""
    Store.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    ports.put(server.server_port)
    server.serve_forever()


def line(name: str, found: Rate, base: Rate | None = None) -> None:
    said = [f"{value:9.1f}" + (f" ({value / base[i]:5.1f} x)" if base else " " * 10) for i, value in enumerate(found)]
    print(f"  {name:<46} {said[0]} samples/s {said[1]} per CPU second", flush=True)


def local(folder: Path, rows: list[dict[str, Any]], parts: Iterable[str]) -> None:
    shuffled = random.Random(1).sample(rows, len(rows))
    quarter = shuffled[: len(rows) // 4]
    names = {row["clip_id"] for row in quarter}
    everything = [name.rpartition(".")[0] or name for name in MEMBERS]
    for state, prepare in (("warm", warm), ("cold", cold)):
        for title, chosen, wanted, members in (
            ("everything, in random order", shuffled, None, everything),
            ("the curated quarter, members of the generator's stage", quarter, names, parts),
        ):
            print(f"{state}: {title}")
            prepare(folder)
            base = rate(by_webdataset, folder, wanted, members)
            line("webdataset", base)
            prepare(folder)
            line("one copy of the bytes, into a buffer kept", rate(by_copy, folder, chosen, members), base)
            if state == "warm":
                line("mapped, every page touched", rate(by_map, folder, chosen, members, verify=False), base)
                line("mapped, every byte verified", rate(by_map, folder, chosen, members, verify=True), base)
                line("byte ranges, every byte verified", rate(by_verified_ranges, str(folder), chosen, members), base)
            for threads in (1, 4):
                prepare(folder)
                line(f"byte ranges, {threads} thread(s)", rate(by_ranges, str(folder), chosen, members, threads), base)


def remote(folder: Path, rows: list[dict[str, Any]], parts: Iterable[str]) -> None:
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(folder, ports), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports.get()}", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    quarter = random.Random(1).sample(rows, len(rows) // 4)
    root = "s3://bucket"
    print(f"object store, {1000 * LATENCY_SECONDS:.0f} ms a request: the same quarter")
    base = rate(by_member, root, quarter, parts)
    line("open every member", base)
    for threads in (1, 8, 16):
        line(f"one range a sample, {threads} thread(s)", rate(by_ranges, root, quarter, parts, threads), base)
    server.terminate()
    server.join()


def main() -> None:
    knobs = argparse.ArgumentParser()
    knobs.add_argument("--shards", type=int, default=2)
    knobs.add_argument("--clips", type=int, default=64, help="in each shard")
    asked = knobs.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write(folder, asked.shards, asked.clips)
        print(f"{len(rows)} clips of {sum(MEMBERS.values()) / 1e6:.1f} MB, webdataset {webdataset.__version__}")
        local(folder, rows, Generator().parts)
        remote(folder, rows, Generator().parts)


if __name__ == "__main__":
    main()
