from pathlib import Path

import pytest

from local.static import serve_file


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    (folder / "sub").mkdir(parents=True)
    for name in (
        "index.html",
        "banner.js",
        "page.css",
        "sub/index.html",
        "sub/a b.js",
        ".secret.txt",
        "run.py",
    ):
        (folder / name).write_text(name)
    (tmp_path / "web-outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "web-outside.txt")
    return folder


@pytest.mark.parametrize(
    "path, body, kind",
    [
        ("/", b"index.html", "text/html; charset=utf-8"),
        ("/banner.js", b"banner.js", "text/javascript; charset=utf-8"),
        ("//page.css", b"page.css", "text/css; charset=utf-8"),
        ("/sub/", b"sub/index.html", "text/html; charset=utf-8"),
        ("/sub/a b.js", b"sub/a b.js", "text/javascript; charset=utf-8"),
    ],
)
def test_files_come_with_their_type(web: Path, path: str, body: bytes, kind: str) -> None:
    response = serve_file(web, path)
    assert (response.status, response.body) == (200, body)
    assert dict(response.headers)["content-type"] == kind


@pytest.mark.parametrize(
    "path",
    [
        "/../web-outside.txt",
        "/sub/../../web-outside.txt",
        "/sub/../index.html",
        "/..\\web-outside.txt",
        "//etc/passwd",
        "/link.txt",
        "/.secret.txt",
        "/run.py",
        "/banner.js\0.txt",
        "/banner.js/x.txt",
        "/" + "a" * 5000 + ".txt",
        "/nothing.txt",
    ],
)
def test_nothing_else_is_there(web: Path, path: str) -> None:
    response = serve_file(web, path)
    assert response.status == 404 and b"outside" not in response.body
