"""The files of a folder over HTTP, and nothing outside it."""

from __future__ import annotations

from pathlib import Path

from local.gateway import Response, message

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
NOT_FOUND = message(404, "Not Found")


def serve_file(folder: Path, path: str) -> Response:
    """The file under a percent-decoded URL path, `index.html` for a folder; 404 for all else.

    Names that begin with a dot, unknown types, and whatever a `..` or a link leads out of the folder to
    are not there.
    """
    if "\0" in path or "\\" in path:
        return NOT_FOUND
    parts = [part for part in path.split("/") if part]
    if any(part.startswith(".") for part in parts):
        return NOT_FOUND
    root = folder.resolve()
    file = root.joinpath(*parts)
    try:
        file = (file / "index.html" if file.is_dir() else file).resolve()
        if not file.is_relative_to(root) or file.suffix not in TYPES:
            return NOT_FOUND
        body = file.read_bytes()
    except OSError:
        return NOT_FOUND
    headers = [
        ("content-type", TYPES[file.suffix]),
        ("cache-control", "no-cache"),
        ("x-content-type-options", "nosniff"),
    ]
    return Response(200, headers, body)
