"""A bucket of Cloud Storage for tests: the part of its JSON interface that readers use, over a folder."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serves ``folder`` as ``gs://bucket``, for reading only.

    Yields:
      Environment variables with which Google's clients and gcsfs look there, and the requests so far.
    """
    requests: list[str] = []

    class Bucket(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            requests.append(self.requestline)

        def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the reader may have heard enough
                self.wfile.write(body)

        def answer_json(self, value: object, code: int = 200) -> None:
            self.answer(json.dumps(value).encode(), code, Content_Type="application/json")

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            match = re.fullmatch(r"(?:/download)?(?:/storage/v1)?/b/bucket(?:/o(?:/(.+))?)?", url.path)
            if match is None:
                self.answer_json({"error": {"message": f"no such address: {url.path}"}}, 404)
            elif match[1]:
                self.object(unquote(match[1]), query)
            else:
                self.answer_json(self.listing(query.get("prefix", ""), "delimiter" in query))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer_json({"error": {"message": "read only", "code": 403}}, 403)

        def object(self, name: str, query: dict[str, str]) -> None:
            path = folder / name
            if not path.is_file():
                self.answer_json({"error": {"message": "not found", "code": 404}}, 404)
            elif query.get("alt") != "media":
                self.answer_json(self.metadata(path))
            else:
                content = path.read_bytes()
                wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
                assert wanted is not None
                if wanted[1]:
                    first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
                else:
                    first, last = len(content) - int(wanted[2]), len(content) - 1
                span = f"bytes {first}-{last}/{len(content)}"
                extra = {"Content_Range": span, "x_goog_generation": "1"}
                self.answer(content[first : last + 1], 206 if "Range" in self.headers else 200, **extra)

        def listing(self, prefix: str, one_level: bool) -> dict[str, object]:
            names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            names = [name for name in names if name.startswith(prefix)]
            inner = {name for name in names if one_level and "/" in name[len(prefix) :]}
            prefixes = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in inner}
            items = [self.metadata(folder / name) for name in names if name not in inner]
            return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

        def metadata(self, path: Path) -> dict[str, object]:
            return {
                "kind": "storage#object",
                "bucket": "bucket",
                "name": str(path.relative_to(folder)),
                "size": str(path.stat().st_size),
                "generation": "1",
                "metageneration": "1",
                "timeCreated": "2026-01-01T00:00:00Z",
                "updated": "2026-01-01T00:00:00Z",
            }

    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        environment = {
            "STORAGE_EMULATOR_HOST": here,  # gcsfs
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": here,  # Google's client for C++, in array_record
            # Or gcsfs asks Google itself what kind of bucket this is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        try:
            yield environment, requests
        finally:
            server.shutdown()
