from pathlib import Path

import pytest

from functions.core.errors import VitrineError
from local.event_source import MappingSettings
from local.template import InvalidTemplate, Template
from tests.local.small_template import TEXT, write_template


def test_the_template_says_routes_mapping_and_table(tmp_path: Path) -> None:
    template = Template(write_template(tmp_path))
    routes = {(route.method, route.path): route.function for route in template.routes()}
    assert set(routes) == {
        ("ANY", "/echo"),
        ("GET", "/echo/{name}"),
        ("GET", "/echo/{rest+}"),
        ("GET", "/echo/fixed"),
        ("GET", "/v1/health"),
    }
    health = routes["GET", "/v1/health"]
    assert (health.name, health.handler) == ("Bare", "tests.local.small_handlers.bare")
    assert (health.timeout_s, health.memory_mb) == (29, 512)
    assert health.environment == {"KEEP_IN": str(tmp_path)}  # the reference is the account's matter
    function, settings = template.mapping()
    assert function.handler == "tests.local.small_handlers.keep"
    assert settings == MappingSettings(50, 0.0, True, 3, 3600, True)
    assert template.table()["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]


@pytest.mark.parametrize(
    "before, after, named",
    [
        ("Type: HttpApi", "Type: Api", "HttpApi"),
        ("Type: Kinesis", "Type: SQS", "Kinesis"),
        ("Handler: tests.local.small_handlers.keep", "Role: x", "Keep"),
        ("BatchSize: 50", "BatchSize: 0", "batch_size"),
        ("BatchSize: 50", "ParallelizationFactor: 2", "ParallelizationFactor"),
        ("AWS::DynamoDB::Table", "AWS::DynamoDB::GlobalTable", "AWS::DynamoDB::Table"),
        ("Resources:", "Resources: [", "expected"),
        ("Resources:", "Things:", "Resources"),
    ],
)
def test_what_a_template_lacks_is_named(tmp_path: Path, before: str, after: str, named: str) -> None:
    path = tmp_path / "template.yaml"
    text = TEXT.format(folder=tmp_path)
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(VitrineError, match=named):
        template = Template(path)
        template.routes(), template.mapping(), template.table()


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTemplate, match=r"nowhere\.yaml"):
        Template(tmp_path / "nowhere.yaml")
