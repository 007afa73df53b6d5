"""What the README says is there is there: its tree, its commands and their flags, its links and proofs."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(pattern: str) -> list[str]:
    found = re.findall(pattern, README)
    assert found, f"no command like {pattern}; expected some in README.md"
    return sorted(set(found))


@pytest.mark.parametrize("target", commands(r"\bmake ([a-z-]+)(?=[\s`])(?! alone)"))
def test_every_make_target_exists(target: str) -> None:
    assert target in TARGETS


@pytest.mark.parametrize("command", commands(r"python -m (\w+ [^\n`]*--[^\n`]*)"))
def test_every_module_and_flag_exists(command: str) -> None:
    module, *words = command.split()
    spec = find_spec(f"{module}.__main__")
    assert spec is not None and spec.origin is not None
    own = Path(spec.origin)
    # a subcommand's flags are in the file of its own
    files = [own] if words[0].startswith("--") else sorted(own.parent.glob("*.py"))
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    for flag in (word for word in words if word.startswith("--")):
        assert f'"{flag}"' in source, f"{flag} of python -m {module}"


def test_the_tree_is_the_repositorys() -> None:
    (tree,) = (block for block in BLOCKS if block.startswith("functions/"))
    named = [line.split()[0] for line in tree.splitlines()]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.rglob("*.py")) and p.name[0] != "."}
    assert folders - {"build"} <= {name.split("/")[0] for name in named}


@pytest.mark.parametrize("path", commands(r"(?:\]\(|`)((?:docs|tests|train|web)/[\w./-]+)"))
def test_every_file_that_is_pointed_to_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "page, row, figures",
    [
        ("quality", "Vitrine, float32, mean of 3 seeds", ".337 / .201"),
        ("quality", "published: SASRec with full cross-entropy", ".315 / .182"),
        ("quality", "published: HSTU-large", ".329 / .189"),
        ("quality", "published: HSTU-large with a mixture of logits", ".341 / .198"),
        ("quality", "Online Retail, split by time/Vitrine,", ".358 / .292"),
        ("quality", "Online Retail, split by time/SVD", ".331 / .267"),
        ("quality", "Complete Journey, split by time/Vitrine,", ".4549 / .1356"),
        ("quality", "Complete Journey, split by time/own history", ".4482 / .1339"),
        ("quality", "Complete Journey, split by time/SVD", ".3705 / .0984"),
        ("performance", "N = 1,000,000, d = 64/vitrine |", ".30 ms"),
        ("performance", "N = 1,000,000, d = 64/FAISS Flat", "8.1 ms"),
        ("performance", "N = 1,000,000, d = 64/numpy fp32", "11.3 ms"),
        ("performance", "banners |", "1.2 ms, 2.0 ms"),
        ("performance", "score: import, bundle open, first answer", ".214 s"),
        ("performance", "an empty handler that imports boto3", ".121 s"),
        ("performance", "Cost/100 |", "2.78 and 3.86"),
        ("performance", "ONNX Runtime, step | 1 |", "16.1 µs"),
        ("performance", "ONNX Runtime, step | 1,000 |", "1.30 µs"),
        ("performance", "torch, step | 1 |", "339 µs"),
        ("performance", "torch, step | 1,000 |", "4.89 µs"),
        ("stream", "the update function", "33,000"),
        ("stream", "one write per event", "7,200"),
    ],
)
def test_every_figure_is_the_pages(page: str, row: str, figures: str) -> None:
    """Each is in the README, and rounds a number of that row, or a thousandth of one: µs, ms or s."""
    text = (ROOT / f"docs/benchmarks/{page}.md").read_text(encoding="utf-8")
    section, _, start = row.rpartition("/")
    line = re.search(rf"^\| {re.escape(start)}.*", text[text.index(section) :], re.MULTILINE)
    assert line, f"{page}.md has no row {row}"
    there = [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d*\.?\d[\d,.]*", line[0])]
    for figure in re.findall(r"[\d.,]*\d", figures):
        assert figure in README
        plain = figure.replace(",", "")
        digits = len(plain) - 1 if "." in plain else len(plain.rstrip("0"))
        told = {float(f"{number / unit:.{digits}g}") for number in there for unit in (1, 1000)}
        assert float(plain) in told, f"{figure}; {line[0]}"
