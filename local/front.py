"""The HTTP front: API Gateway's part and the web page, in a process of its own."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from functions.core.errors import VitrineError
from local.account import read_pointer
from local.function import Function, FunctionError
from local.gateway import (
    MAX_BODY_BYTES,
    MalformedAnswer,
    Request,
    Response,
    Router,
    fits,
    message,
    to_event,
    to_response,
)
from local.products import EmptyShelves, Shelves, demo_route, open_shelves
from local.static import serve_file
from local.template import Template

HOST = "127.0.0.1"
WEB = Path(__file__).resolve().parents[1] / "web"
THREADS = 8
DEMO = ("/demo/categories", "/demo/products")
TOO_LARGE = message(413, "Request Entity Too Large")
NOT_FOUND = message(404, "Not Found")
FAILED = message(500, "Internal Server Error")

Invoke = Callable[[dict[str, Any]], Any]


class PortTaken(VitrineError):
    """Somebody else listens on the port."""

    def __init__(self, port: int, error: Exception) -> None:
        why = "in use" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
        super().__init__(f"port {port} of {HOST}: {why}; choose another with --port, or 0 for any free one")


class Front:
    """A WSGI application: the API's routes, then the demo page's own two, then the files of `web`."""

    def __init__(
        self,
        router: Router,
        functions: Mapping[str, Invoke],
        shelves: Shelves | EmptyShelves,
        web: Path,
    ) -> None:
        self._router, self._functions, self._shelves, self._web = router, functions, shelves, web

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        response = self._checked(environ)
        status = f"{response.status} {_phrase(response.status)}"
        bodiless = response.status in (204, 304) or response.status < 200
        body = b"" if bodiless else response.body
        headers = [] if bodiless else [("content-length", str(len(body)))]
        start_response(status, [*response.headers, *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _checked(self, environ: dict[str, Any]) -> Response:
        if int(environ.get("CONTENT_LENGTH") or 0) > MAX_BODY_BYTES:
            return TOO_LARGE
        return self.answer(read_request(environ))

    def answer(self, request: Request) -> Response:
        """The answer to one request."""
        found = self._router.match(request.method, request.path)
        if found:
            return self._invoke(to_event(request, *found), found[0].function.name)
        if request.method not in ("GET", "HEAD"):
            return NOT_FOUND
        if request.path in DEMO:
            return demo_route(self._shelves, request)
        return serve_file(self._web, request.path)

    def _invoke(self, event: dict[str, Any], function: str) -> Response:
        if not fits(event):
            return TOO_LARGE
        try:
            return to_response(self._functions[function](event))
        except (FunctionError, MalformedAnswer) as error:
            print(error, file=sys.stderr)
            return FAILED


def read_request(environ: Mapping[str, Any]) -> Request:
    """The request in a WSGI environment, with the headers that API Gateway adds."""
    headers = {
        name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    source = str(environ.get("REMOTE_ADDR", ""))
    forwarded = headers.get("x-forwarded-for")
    headers["x-forwarded-for"] = f"{forwarded}, {source}" if forwarded else source
    headers["x-forwarded-port"] = str(environ.get("SERVER_PORT", ""))
    headers["x-forwarded-proto"] = "http"
    return Request(
        method=str(environ["REQUEST_METHOD"]),
        path=str(environ["PATH_INFO"]).encode("latin-1").decode("utf-8", "replace"),
        query=quote(str(environ.get("QUERY_STRING", "")), safe="%!$&'()*+,/:;=?@~[]", encoding="latin-1"),
        headers=dict(sorted(headers.items())),
        body=environ["wsgi.input"].read(),
        source_ip=source,
        protocol=str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")),
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def serve(ready: Callable[[int], None], port: int, template: Path, bundles: Path, web: Path) -> None:
    """Serve until the process ends, on `port` (0: any free one); tells the port. Raises VitrineError."""
    import waitress

    router = Router(Template(template).routes())
    functions = {entry.name: Function(entry).invoke for entry in router.functions}
    shelves = open_shelves(bundles / read_pointer(bundles)["champion"])
    try:
        server = waitress.create_server(
            Front(router, functions, shelves, web),
            host=HOST,
            port=port,
            threads=THREADS,
            max_request_body_size=MAX_BODY_BYTES + 2**20,  # a little more, so that the gateway's 413 is ours
            ident="",
        )
    except OSError as error:
        raise PortTaken(port, error) from error
    ready(server.effective_port)
    server.run()
