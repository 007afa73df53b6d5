"""What a cold start costs: the built artifact from nothing to its first banners, beside an empty handler.

Each start is a fresh Python 3.12 that has the artifact alone on its path, in turns; the files are in the page
cache, the bundle is on the disk. Ours is the whole of `functions.score` as Lambda starts it: clients made,
secret, pointer and row read from a server on the loopback, every file of the bundle that a function reads
verified, golden vectors checked, five personal banners answered. The empty handler imports boto3 and returns.
Counted are CPU milliseconds of the process, all its threads'; wall-clock beside them. Each process ends by
os._exit when it has answered: Lambda ends none, so what freeing costs is no part of a start.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from bench.shop import ENVIRONMENT, PSEUDONYM, Account, make_bundle
from bench.warm import credential, http_event
from functions.aws.rows import to_item
from functions.core.bundle import MANIFEST, REPORT, SCHEMA
from functions.core.events import Event, user_key
from functions.core.fold import fold
from functions.core.served import open_bundle

ROUNDS = 45
TARGET = 2.0  # times the empty handler
BOTO3 = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3")
EMPTY, OURS = "an empty handler that imports boto3", "score: import, bundle open, first answer"
CODE = {
    EMPTY: "import boto3\ndef handler(event, context):\n    return {}\nhandler({}, None)",
    OURS: (
        "import json, os\n"
        "from functions.score import handler\n"
        "answer = handler(json.loads(os.environ['EVENT']), None)\n"
        "said = json.loads(answer['body'])\n"
        "assert (answer['statusCode'], said['tier'], len(said['banners'])) == (200, 'personal', 5), answer"
    ),
    "of it, Python alone": "",
    "of it, Powertools' Logger and metrics": "import functions.aws.telemetry",
    "of it, clients: signatures, HTTP, TLS": "import functions.aws.clients",
    "of it, numpy": "import functions.aws.blas, numpy",
    "of it, numpy and ONNX Runtime": "import functions.aws.blas, numpy, onnxruntime",
    "of it, importing functions.score": "import functions.score",
}


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench init", description=__doc__)
    parser.add_argument("--artifact", type=Path, default=Path("build/artifact"), help="of `make build`")
    parser.add_argument("--python", default="python3.12", help="a Python 3.12, as Lambda's")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, help="numbers of a vector; else what training has for so many")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where the bundle is kept")
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    kept = options.folder / f"start-{SCHEMA}-{options.items}-{options.dim or 'ruled'}"
    bundles = fetched(kept, options.items, options.dim)
    with stand_in(bundles) as environment:
        path = [options.artifact.resolve(), boto3_folder(options.folder.resolve() / "boto3", options.python)]
        spent = measure(options.python, path, environment, options.rounds)
    median = {name: np.median(times, 0).round(1).tolist() for name, times in spent.items()}
    report = {
        "items": options.items,
        **described(bundles),
        "rounds": options.rounds,
        "artifact_mb": round(_bytes(options.artifact) / 1e6, 1),
        "milliseconds": {name: {"cpu": cpu, "wall": wall} for name, (cpu, wall) in median.items()},
        "target": TARGET,
    }
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def described(bundles: Path) -> dict[str, Any]:
    """What a start reads: the width of the embeddings, and the files that it verifies."""
    champion = json.loads((bundles / "pointer.json").read_text())["champion"]
    manifest = json.loads((bundles / champion / MANIFEST).read_text())
    sizes = {name: round(stated["bytes"] / 1e6, 1) for name, stated in manifest["files"].items()}
    return {"dim": manifest["dim"], "files_mb": {name: size for name, size in sizes.items() if size >= 0.1}}


def fetched(folder: Path, items: int, dim: int | None = None) -> Path:
    """A pointer and what a function fetches of its bundle, made unless they are there."""
    if (folder / "pointer.json").exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        with redirect_stdout(sys.stderr):
            made = make_bundle(Path(scratch), items, dim)
        for report in made.glob(f"*/{REPORT}"):
            shutil.rmtree(report)
        shutil.copytree(made, folder)
    return folder


@contextmanager
def stand_in(bundles: Path) -> Iterator[dict[str, str]]:
    """The environment of a function whose bucket, table and secret are a server on the loopback."""
    account = Account(bundles)
    champion = str(json.loads((bundles / "pointer.json").read_text())["champion"])
    served = open_bundle(bundles / champion, champion)
    key, now_s = user_key(PSEUDONYM, "ann"), int(time.time())
    events = [Event(f"e{n}", "view", f"sku-{n * 37:07d}", now_s - 60 + n) for n in range(20)]
    (row,), _ = fold([served.encoder.empty()], [events], served.encoder)
    account.rows[key] = to_item(key, replace(row, version=1, wid=bytes(8)), now_s)
    served.close()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answers, account))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    asked = http_event("/v1/banners", {"slot": "home", "k": 5}, credential("ann"))
    try:
        yield {
            **ENVIRONMENT,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "TMPDIR": str(bundles.resolve()),
            "EVENT": json.dumps(asked),
            "PATH": os.environ["PATH"],
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    """What a start asks of AWS, from an account."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def __init__(self, account: Account, *given: Any) -> None:
        self._account = account
        super().__init__(*given)

    def do_GET(self) -> None:
        """S3's, with the bucket in the path."""
        key = self.path.removeprefix(f"/{ENVIRONMENT['VITRINE_BUCKET']}/").partition("?")[0]
        self._say(self._account.get_object(Key=key)["Body"].read())

    def do_POST(self) -> None:
        """DynamoDB's and Secrets Manager's."""
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["X-Amz-Target"].endswith(".GetItem"):
            said = self._account.get_item(**given)
        else:
            said = self._account.get_secret_value(**given)
        self._say(json.dumps(said, default=lambda data: base64.b64encode(data).decode()).encode())

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def boto3_folder(folder: Path, python: str) -> Path:
    """boto3 and what it needs, compiled as the artifact is: Lambda's runtime has it, the artifact has not."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in BOTO3:
        (found,) = filter(None, [importlib.util.find_spec(name)])
        source = Path(str(found.origin))
        if source.name == "__init__.py":
            shutil.copytree(
                source.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__", "examples")
            )
        else:
            shutil.copy(source, folder)
    compiled = [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(folder)]
    subprocess.run(compiled, check=True)
    return folder


def measure(
    python: str, path: list[Path], environment: dict[str, str], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall milliseconds of so many starts of each kind, after one that does not count."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in CODE}
    begin, end = "import sys; sys.path[:0] = sys.argv[1:]\n", "\nimport os; os._exit(0)"
    for turn in range(rounds + 1):
        for name, code in CODE.items():
            alone = {} if name == OURS else {"AWS_LAMBDA_INITIALIZATION_TYPE": ""}
            given = {key: value for key, value in (environment | alone).items() if value}
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(
                [python, "-I", "-S", "-c", begin + code + end, *map(str, path)],
                check=True,
                env=given,
                stdout=subprocess.DEVNULL,
            )
            wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            if turn:
                spent[name].append((1e3 * took, 1e3 * wall))
    return spent


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def as_table(report: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    took = report["milliseconds"]
    times = took[OURS]["cpu"] / took[EMPTY]["cpu"]
    lines = ["| a fresh process | CPU ms | wall ms |", "|---|---|---|"]
    lines += [f"| {name} | {ms['cpu']:.0f} | {ms['wall']:.0f} |" for name, ms in took.items()]
    met = "met" if times <= report["target"] else "**not met**"
    wall = took[OURS]["wall"] / took[EMPTY]["wall"]
    lines += ["", f"{times:.2f} times the empty handler (wall: {wall:.2f}); at most {report['target']:g}"]
    lines[-1] += f" was the aim: {met}. {report['rounds']} starts of each, {report['items']:,} products."
    sizes = ", ".join(f"{name} {size:g}" for name, size in report["files_mb"].items())
    lines += [f"d = {report['dim']}; the bundle's files of .1 MB and more, MB: {sizes}."]
    lines += [f"The artifact is {report['artifact_mb']} MB unzipped, of 150 at most."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
