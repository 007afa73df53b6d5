"""From a shop's files to what the checkpoint says: precomputed vectors, devices, times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import train.validation as validation
from export.handover import read_products
from train.__main__ import main
from train.checkpoint import load


def test_vectors_devices_and_times_go_from_the_files_into_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    times = 1_700_000_000 + np.cumsum(rng.integers(1, 50_000, 400))
    events = [
        {
            "user_id": f"u{n % 20}",
            "item_id": f"i{rng.integers(12)}",
            "type": "view",
            "time": int(time_s),
            "device": ("Mobile", "desktop")[n % 3 == 0],
        }
        for n, time_s in enumerate(times)
    ]
    items = [{"item_id": f"i{n}", "title": f"Item {n}", "image_vector": [n, 1.0, -n]} for n in range(11)]
    for name, rows in (("e.jsonl", events), ("i.jsonl", items)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    out = tmp_path / "out"
    files = ["--events", str(tmp_path / "e.jsonl"), "--items", str(tmp_path / "i.jsonl")]
    with monkeypatch.context() as patched:
        patched.setattr(validation, "_silent", lambda *_: ())  # of so few events it is chance what is heard
        assert main([*files, "--out", str(out), "--epochs", "1"]) == 0
    towers, meta = load(out)
    assert meta.vocabulary["vectors"] == [["image_vector", 3]]
    assert meta.vocabulary["devices"] == ["mobile", "desktop"]
    assert (towers.shape.vectors, towers.shape.devices, towers.shape.slots) == (3, 2, 0)
    assert towers.context.names.all()
    vectors = read_products(out, meta).features.vectors
    np.testing.assert_allclose(vectors[1], np.array([1, 1, -1]) / np.sqrt(3), atol=1e-6)
    assert vectors.shape == (12, 3) and not vectors[11].any()  # only the log knows the twelfth
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() >= {"test", "test_in_context"}
    assert metrics["context"] == {"clock": True, "names": True, "elapsed": True, "interest": True}
