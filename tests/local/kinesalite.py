"""kinesalite, an emulator of Kinesis in Node, faithful in sequence numbers, limits, splits and merges.

It is installed from npm on first use, into `build/kinesalite`; no other code than what npm unpacks is run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "kinesalite@3.3.3"
FOLDER = Path(__file__).parents[2] / "build" / "kinesalite"
INSTALL_S = 300
SERVER = """
const options = { createStreamMs: 10, deleteStreamMs: 10, updateStreamMs: 10, shardLimit: 50 };
const server = require("kinesalite")(options);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""


class NoKinesalite(Exception):
    """There is no npm or no node here, or the package cannot be had; says which."""


@contextmanager
def kinesalite() -> Iterator[str]:
    """A running emulator, empty; its endpoint. Raises NoKinesalite."""
    _install()
    command = ["node", "-e", SERVER]
    process = subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise NoKinesalite(f"node ended with {process.wait()}; expected a port ({PACKAGE})")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _install() -> None:
    for program in ("npm", "node"):
        if shutil.which(program) is None:
            raise NoKinesalite(f"there is no {program}; {PACKAGE} needs Node.js")
    if (FOLDER / "node_modules" / "kinesalite").is_dir():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", "--prefix", ".", PACKAGE]
    done = subprocess.run(install, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode:
        raise NoKinesalite(f"npm install {PACKAGE}: {done.stderr[-500:]}")
