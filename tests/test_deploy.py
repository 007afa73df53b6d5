"""What docs/deploy.md tells the operator to type, as far as it can be run without an account."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from functions.aws.bundles import REFRESH_S
from functions.aws.secret import parse_secret
from functions.score import VISITOR_LIFETIME_S

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "template.yaml").read_text(encoding="utf-8")


def names_in_section(section: str) -> set[str]:
    """The top-level names of a section of the template."""
    body = re.search(rf"^{section}:\n((?: .*\n|\n)+)", TEMPLATE, re.MULTILINE)
    assert body is not None
    return set(re.findall(r"^  (\w+):", body[1], re.MULTILINE))


def test_the_guides_command_makes_a_secret_that_the_functions_read() -> None:
    (script,) = re.findall(r"^python3 -c '([^']+)' \|$", GUIDE, re.MULTILINE)
    made = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    first, second = map(parse_secret, made)
    assert first.pseudonym != second.pseudonym
    assert first.pseudonym.hex() not in str(first.keys)  # two keys, not one used twice


def test_the_outputs_and_parameters_of_the_guide_are_the_templates() -> None:
    asked = set(re.findall(r"\$\(output (\w+)\)", GUIDE))
    assert asked == {"ShopSecretArn", "BundleBucketName", "ApiUrl"}
    assert asked <= names_in_section("Outputs")
    explained = set(re.findall(r"`(\w+)`", GUIDE.partition("| parameter")[2].partition("\n\n")[0]))
    assert explained == names_in_section("Parameters")


def test_every_alarm_is_explained() -> None:
    alarms = {name for name in names_in_section("Resources") if name.endswith("Alarm")}
    assert len(alarms) == 4
    assert set(re.findall(r"^\| `(\w+Alarm)`", GUIDE, re.MULTILINE)) == alarms


def test_the_times_of_the_guide_are_the_codes() -> None:
    assert f"every {REFRESH_S:.0f} seconds" in GUIDE
    assert f"({VISITOR_LIFETIME_S // 86_400} days)" in GUIDE


def test_the_guides_sam_is_the_one_that_is_checked() -> None:
    (pinned,) = re.findall(r"^SAM_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"SAM {pinned}" in GUIDE
