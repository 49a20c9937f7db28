"""An S3 store on loopback that fails when told to: moto behind a layer that answers 503, drops, cuts or waits.

A fault waits for the requests that match it, strikes as often as it is told to, and is gone. Every request is noted.
"""

import contextlib
import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

EVERY = 10**9  # as a fault's ``times``: each request that matches

_CODES = {403: "SignatureDoesNotMatch", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


class Request(NamedTuple):
    method: str
    path: str  # /bucket/key?query
    range: str  # the header, empty when there is none


@dataclass
class Fault:
    """What happens to the next ``times`` requests of ``method`` whose path holds ``path``, after ``skip`` of them.

    answer: an error of ``status``, or ``body``, instead of the answer. drop: the connection is closed without an
    answer. lose: the request is carried out, its answer dropped. cut: the answer's head, then only the share ``keep``
    of its body. wait: ``seconds`` before the answer.
    """

    kind: Literal["answer", "drop", "lose", "cut", "wait"]
    times: int = 1
    method: str = ""
    path: str = ""
    skip: int = 0
    status: int = 503
    code: str = ""  # S3's word for the error; a usual one for the status when empty
    body: str = ""  # XML, in place of one that says the error
    keep: float = 0.5
    seconds: float = 0.0


class FaultyStore:
    """``with FaultyStore() as store``: runs while the block does; ``store.environment`` points S3 clients at it."""

    def __init__(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *args: Any) -> None:
                pass

            def log(self, *args: Any) -> None:
                pass

        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # without keys, nobody asks the machine for some
            "AWS_CONFIG_FILE": os.devnull,  # the tester's own settings stay out
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def __enter__(self) -> "FaultyStore":
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def inject(self, *faults: Fault) -> None:
        with self._lock:
            self._faults += faults

    def heal(self) -> None:
        """No fault strikes any more; the noted requests are forgotten."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def pending(self) -> int:
        """Strikes still to come: 0 when every fault has struck as often as it should."""
        with self._lock:
            return sum(fault.times for fault in self._faults)

    def new_bucket(self) -> str:
        """The URL of a fresh, empty bucket."""
        import urllib.request

        name = f"bucket-{uuid.uuid4().hex[:12]}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(f"{self.url}/{name}", method="PUT")).close()
        return f"s3://{name}"

    def put(self, location: str, data: bytes) -> None:
        """Put an object there at once, past all clients and faults."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        bucket, key = location.removeprefix("s3://").split("/", 1)
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, data)

    @functools.cached_property
    def _moto(self) -> Callable[..., Iterable[bytes]]:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        return DomainDispatcherApplication(create_backend_app)  # type: ignore[no-any-return]

    def _struck(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times > 0 and request.method.startswith(fault.method) and fault.path in request.path:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"] + query, environ.get("HTTP_RANGE", ""))
        fault = self._struck(request)
        if fault is None:
            return self._moto(environ, start_response)
        if fault.kind == "wait":
            time.sleep(fault.seconds)
            return self._moto(environ, start_response)
        if fault.kind == "cut":
            return self._cut(fault, environ, start_response)
        if fault.kind == "lose":
            self._answer(environ)
            self._drop(environ)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.kind == "drop":
            self._drop(environ)
        code = fault.code or _CODES.get(fault.status, "BadRequest")
        xml = fault.body or f"<Error><Code>{code}</Code><Message>told to fail: {code}</Message></Error>"
        body = f'<?xml version="1.0"?>{xml}'.encode()
        start_response(
            f"{fault.status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        )
        return [b"" if request.method == "HEAD" else body]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        """Status, headers and body of moto's answer."""
        head: list[Any] = []

        def keep_head(*answer: Any) -> Callable[[bytes], object]:
            head[:] = answer
            return lambda data: None

        body = b"".join(self._moto(environ, keep_head))
        return head[0], head[1], body

    @staticmethod
    def _drop(environ: dict[str, Any]) -> NoReturn:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("dropped as told")

    def _cut(self, fault: Fault, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, body = self._answer(environ)
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body[: int(fault.keep * len(body))]]


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables, and proxies out of the way, for as long as this lasts."""
    values = {**values, **dict.fromkeys(("AWS_PROFILE", "AWS_SESSION_TOKEN"), "")}
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
