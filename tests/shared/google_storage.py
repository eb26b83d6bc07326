"""As much of Google's storage protocol (JSON) as its client speaks with us: a bucket in memory, on a port of this machine."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit


class Bucket(BaseHTTPRequestHandler):
    """One request. Objects and the uploads that were begun belong to the class."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    begun: ClassVar[dict[str, bytes]] = {}
    numbers: ClassVar[Iterator[int]] = count()
    name = "bucket"

    def do_GET(self) -> None:
        path, query = self.parts()
        key = self.key(path)
        if f"/b/{self.name}" not in path and not path.startswith(f"/{self.name}/"):
            self.answer(404, {"error": {"message": "no such bucket"}})
        elif path.endswith(f"/b/{self.name}"):
            self.answer(200, {"kind": "storage#bucket", "name": self.name, "id": self.name})
        elif path.endswith(f"/b/{self.name}/o"):
            self.answer(200, self.listing(query.get("prefix", ""), query.get("delimiter", "")))
        elif key not in self.objects:
            self.answer(404, {"error": {"code": 404, "message": f"No such object: {key}"}})
        elif query.get("alt") == "media" or path.startswith(f"/{self.name}/"):
            self.download(self.objects[key])
        else:
            self.answer(200, self.facts(key))

    def do_POST(self) -> None:
        path, query = self.parts()
        body = self.body()
        if f"/b/{self.name}/" not in path:
            self.answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        elif query["uploadType"] == "resumable":
            upload = f"{next(self.numbers)} {query.get('name') or json.loads(body)['name']}"
            self.begun[upload] = b""
            place = (
                f"http://{self.headers['Host']}/upload/storage/v1/b/{self.name}/o?upload_id={quote(upload, safe='')}"
            )
            self.answer(200, {}, {"Location": place})
        else:
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()  # type: ignore[index]
            about, media = (part.split(b"\r\n\r\n", 1)[1][:-2] for part in body.split(b"--" + boundary)[1:3])
            key = query.get("name") or json.loads(about)["name"]
            self.objects[key] = media
            self.answer(200, self.facts(key))

    def do_PUT(self) -> None:
        upload = self.parts()[1]["upload_id"]
        self.begun[upload] += self.body()
        if self.headers.get("Content-Range", "").endswith("/*"):
            received = len(self.begun[upload])
            self.answer(308, {}, {"Range": f"bytes=0-{received - 1}"} if received else {})
        else:
            key = upload.partition(" ")[2]
            self.objects[key] = self.begun.pop(upload)
            self.answer(200, self.facts(key))

    def do_DELETE(self) -> None:
        known = self.objects.pop(self.key(self.parts()[0]), None) is not None
        self.answer(204 if known else 404, {})

    def parts(self) -> tuple[str, dict[str, str]]:
        found = urlsplit(self.path)
        return found.path, {name: values[0] for name, values in parse_qs(found.query).items()}

    def key(self, path: str) -> str:
        for start in (f"/storage/v1/b/{self.name}/o/", f"/download/storage/v1/b/{self.name}/o/", f"/{self.name}/"):
            if path.startswith(start):
                return unquote(path.removeprefix(start))
        return ""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def facts(self, key: str) -> dict[str, object]:
        return {
            "kind": "storage#object",
            "name": key,
            "bucket": self.name,
            "size": str(len(self.objects[key])),
            "generation": "1",
            "etag": f"e{hash(self.objects[key])}",
            "updated": "2024-01-01T00:00:00.000Z",
        }

    def listing(self, prefix: str, delimiter: str) -> dict[str, object]:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        if not delimiter:
            return {"kind": "storage#objects", "items": [self.facts(key) for key in keys]}
        nested = [key for key in keys if delimiter in key[len(prefix) :]]
        folders = {prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter for key in nested}
        items = [self.facts(key) for key in keys if key not in nested or key in folders]
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def download(self, data: bytes) -> None:
        found = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert found is not None
        first = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
        last = min(int(found[2]) if found[1] and found[2] else len(data) - 1, len(data) - 1)
        if first > last and data:
            self.answer(416, {})
            return
        part = data[first : last + 1]
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "x-goog-generation": "1"}
        self.send(206 if part else 200, part, headers)

    def answer(self, status: int, facts: dict[str, object], headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send(status, json.dumps(facts).encode() if status != 204 else b"", headers)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":  # a process of its own: pyarrow holds Python's lock while it waits for some answers
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    print(server.server_port, flush=True)
    server.serve_forever()
