"""An S3 server of the tests: moto's, on loopback, with faults that a test may ask for. No fixture, no test."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any
from urllib.parse import quote

import httpx

#: What obstore, and what else speaks S3, take from the environment. They open nothing but a test's server.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
    "AWS_REGION": "us-east-1",
}

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_ANSWERS = {503: ("503 Service Unavailable", _BUSY), 403: ("403 Forbidden", _DENIED)}

#: moto reads whose request it is, and checks no signature.
_SIGNED = f"AWS4-HMAC-SHA256 Credential={CREDENTIALS['AWS_ACCESS_KEY_ID']}/20261122/us-east-1/s3/aws4_request"


@dataclass
class Store:
    """The running server. ``asked`` are the requests as ``GET /bucket/key``; ``refuse`` says which get a 503 or 403."""

    url: str
    asked: list[str] = field(default_factory=list)
    refuse: Callable[[str], int | None] = lambda request: None

    def make_bucket(self, name: str) -> Bucket:
        self.ask("PUT", name)
        return Bucket(self, name)

    def ask(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        headers = {"Authorization": _SIGNED}
        answer = httpx.request(method, f"{self.url}/{path}", content=content, headers=headers, trust_env=False)
        return answer.raise_for_status()


@dataclass
class Bucket:
    """A bucket as whoever writes into it sees it: not by the client that is tested."""

    store: Store
    name: str

    @property
    def address(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> None:
        self.store.ask("PUT", f"{self.name}/{quote(key)}", content)

    def get(self, key: str) -> bytes:
        return self.store.ask("GET", f"{self.name}/{quote(key)}").content

    def delete(self, key: str) -> None:
        self.store.ask("DELETE", f"{self.name}/{quote(key)}")

    def names(self) -> list[str]:
        return [unescape(key) for key in re.findall("<Key>(.*?)</Key>", self.store.ask("GET", self.name).text)]


@contextmanager
def serving() -> Iterator[Store]:
    """A server in threads of this process; what is in it is gone with it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto: Any = DomainDispatcherApplication(create_backend_app)
    store = Store("")

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}"
        store.asked.append(request)
        if (status := store.refuse(request)) is not None:
            line, body = _ANSWERS[status]
            start_response(line, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):  # a client of Google's
            environ["HTTP_AUTHORIZATION"] = _SIGNED
            environ["RAW_URI"] = environ["REQUEST_URI"] = quote(environ["PATH_INFO"]) + query
        return moto(environ, start_response)  # type: ignore[no-any-return]

    server = make_server("127.0.0.1", 0, app, threaded=True)
    store.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
