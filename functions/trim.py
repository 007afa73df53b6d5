"""What the zip keeps of botocore's data: the operations that functions call, uncompressed; run by the build.

A client's first second goes into reading the descriptions of all that a service can do, and of every
endpoint of every service: 40 of botocore's 50 ms for each client.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

OPERATIONS = {
    "dynamodb": ("BatchGetItem", "GetItem", "PutItem"),
    "kinesis": ("PutRecord",),
    "s3": ("GetObject", "PutObject"),
    "secretsmanager": ("GetSecretValue",),
}
SERVICE, RULES = "service-2", "endpoint-rule-set-1"
Json = dict[str, Any]


def main(data: Path) -> None:
    """Trim the folder `botocore/data`."""
    for folder in [path for path in data.iterdir() if path.is_dir()]:
        if folder.name in OPERATIONS:
            _trim_service(folder, OPERATIONS[folder.name])
        else:
            shutil.rmtree(folder)
    endpoints = json.loads((data / "endpoints.json").read_bytes())
    for partition in endpoints["partitions"]:
        partition["services"] = {n: s for n, s in partition["services"].items() if n in OPERATIONS}
    _write(data / "endpoints.json", endpoints)


def _trim_service(folder: Path, operations: tuple[str, ...]) -> None:
    *older, latest = sorted(path for path in folder.iterdir() if path.is_dir())
    for version in older:
        shutil.rmtree(version)
    kept = {name: _read(latest / f"{name}.json.gz") for name in (SERVICE, RULES)}
    shutil.rmtree(latest)
    latest.mkdir()
    _write(latest / f"{SERVICE}.json", described(kept[SERVICE], operations))
    _write(latest / f"{RULES}.json", kept[RULES])


def described(service: Json, operations: tuple[str, ...]) -> Json:
    """A service's description with these operations alone, and the shapes that they are made of."""
    named = {name: _bare(service["operations"][name]) for name in operations}
    shapes: dict[str, Any] = {}
    wanted = _shapes_in(list(named.values()))
    while wanted:
        name = wanted.pop()
        if name not in shapes:
            shapes[name] = _bare(service["shapes"][name])
            wanted |= _shapes_in(shapes[name])
    return {**service, "documentation": "", "operations": named, "shapes": shapes}


def _bare(description: Any) -> Any:
    """Without what is for people."""
    if isinstance(description, list):
        return [_bare(each) for each in description]
    if not isinstance(description, dict):
        return description
    prose = isinstance(description.get("documentation"), str)  # and no member of that name
    return {name: _bare(v) for name, v in description.items() if not (prose and name == "documentation")}


def _shapes_in(description: Any) -> set[str]:
    if isinstance(description, list):
        return {shape for each in description for shape in _shapes_in(each)}
    if not isinstance(description, dict):
        return set()
    named = description.get("shape")
    within = {shape for each in description.values() for shape in _shapes_in(each)}
    return within | {named} if isinstance(named, str) else within


def _read(path: Path) -> Json:
    read: Json = json.loads(gzip.decompress(path.read_bytes()))
    return read


def _write(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
