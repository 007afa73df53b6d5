"""What a cold start costs: the built artifact from nothing to its first banners, beside an empty handler.

Each start is a fresh Python 3.12 that has the artifact alone on its path. Counted are CPU milliseconds, in
turns; the files are in the page cache. The empty handler imports boto3 and returns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from bench.shop import make_bundle

ROUNDS = 9
TARGET = 2.0  # times the empty handler
EMPTY = """
import boto3
def handler(event, context):
    return {}
handler({}, None)
"""
OURS = """
import time
from pathlib import Path
import functions.score as score
from functions.aws.secret import ShopSecret
from functions.core.banners import Visitor
from functions.core.requests import parse_banner_request
from functions.core.served import open_bundle
from functions.core.tokens import Keys
bundle = open_bundle(Path(sys.argv[2]))
now_s = int(time.time())
request = parse_banner_request({"slot": "home", "k": 5}, bundle.slots, now_s)
secret = ShopSecret(Keys({"k": b"1" * 32}, "k"), b"2" * 32)
said = score.respond(bundle, request, Visitor("visitor", bundle.encoder.empty()), secret, now_s)
assert len(said["banners"]) == 5, said
"""
IMPORTS = {
    "an empty handler that imports boto3": EMPTY,
    "score: import, bundle open, first answer": OURS,
    "of it, importing functions.score": "import functions.score",
    "of it, importing numpy and ONNX Runtime": "import numpy, onnxruntime",
    "of it, importing powertools' event handler": "import aws_lambda_powertools.event_handler",
}


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench init", description=__doc__)
    parser.add_argument("--artifact", type=Path, default=Path("build/artifact"), help="of `make build`")
    parser.add_argument("--python", default="python3.12", help="a Python 3.12, as Lambda's")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        bundles = make_bundle(Path(folder), options.items)
        champion = json.loads((bundles / "pointer.json").read_text())["champion"]
        spent = measure(options.python, options.artifact.resolve(), bundles / champion)
    report = {
        "items": options.items,
        "artifact_mb": round(_bytes(options.artifact) / 1e6, 1),
        "milliseconds": {name: round(statistics.median(times), 1) for name, times in spent.items()},
        "target": TARGET,
    }
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(python: str, artifact: Path, bundle: Path) -> dict[str, list[float]]:
    """CPU milliseconds of ROUNDS starts of each kind, after one that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in IMPORTS}
    path = "import sys; sys.path.insert(0, sys.argv[1])\n"
    for turn in range(ROUNDS + 1):
        for name, code in IMPORTS.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [python, "-I", "-S", "-c", path + code, str(artifact), str(bundle)],
                check=True,
                env={"PATH": os.environ["PATH"], "AWS_DEFAULT_REGION": "eu-central-1"},
                stdout=subprocess.DEVNULL,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            if turn:
                spent[name].append(1e3 * took)
    return spent


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def as_table(report: dict[str, object]) -> str:
    """For a person, in Markdown."""
    took = report["milliseconds"]
    assert isinstance(took, dict)
    empty, ours = (took[name] for name in list(IMPORTS)[:2])
    lines = ["| a fresh process | CPU ms |", "|---|---|"]
    lines += [f"| {name} | {ms:.0f} |" for name, ms in took.items()]
    met = "met" if ours <= TARGET * empty else "**not met**"
    lines += ["", f"{ours / empty:.2f} times the empty handler; at most {TARGET:g} was the aim: {met}."]
    lines += [f"The artifact is {report['artifact_mb']} MB unzipped, of 150 at most."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
