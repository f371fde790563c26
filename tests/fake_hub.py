"""A hub for tests, on this machine: the few calls that huggingface_hub makes to push and pull."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "c" * 40


class Hub:
    """What the server holds: repositories, objects, and every request's path and credentials."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        self.url = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, content: object, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def missing(self) -> None:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

        def note(self) -> list[str]:
            path = urlsplit(self.path).path
            hub.seen.append((self.command, path, self.headers.get("Authorization")))
            return path.strip("/").split("/")

        def do_POST(self) -> None:
            parts, body = self.note(), self.body()
            if parts == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.repositories.setdefault(name, {})
                return self.answer({"url": f"{hub.url}/{name}", "name": name})
            if parts == ["api", "validate-yaml"]:
                return self.answer({"errors": [], "warnings": []})
            if parts[-1] == "batch":
                objects = [
                    {**o, "actions": {"upload": {"href": f"{hub.url}/objects/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            files = hub.repositories.get("/".join(parts[2:4]))
            if files is None:
                return self.missing()
            if parts[4] == "preupload":
                asked = json.loads(body)["files"]
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in asked
                ]
                return self.answer({"files": modes})
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            name = "/".join(parts[2:4])
            url = f"{hub.url}/{name}/commit/{COMMIT}"
            return self.answer({"success": True, "commitUrl": url, "commitOid": COMMIT})

        def do_PUT(self) -> None:
            self.note()
            body = self.body()
            hub.objects[hashlib.sha256(body).hexdigest()] = body
            self.answer(b"")

        def do_GET(self) -> None:
            parts = self.note()
            api = parts[0] == "api"
            name = "/".join(parts[2:4] if api else parts[:2])
            files = hub.repositories.get(name)
            if files is None:
                return self.missing()
            if api and "tree" in parts:
                return self.answer(
                    [
                        {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                        for path, data in files.items()
                    ]
                )
            if api:
                siblings = [{"rfilename": path} for path in files]
                return self.answer({"id": name, "sha": COMMIT, "siblings": siblings})
            data = files["/".join(parts[4:])]
            return self.answer(data, ETag=f'"{_oid(data)}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub at hub.url."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
