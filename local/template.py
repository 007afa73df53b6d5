"""What the deployment template says, for everything local that must do the same: routes, mapping, table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from functions.core.errors import VitrineError
from local.event_source import REPORTS, MappingSettings

TEMPLATE = Path(__file__).resolve().parents[1] / "template.yaml"
DEFAULT_TIMEOUT_S, DEFAULT_MEMORY_MB = 3, 128  # Lambda's own


class InvalidTemplate(VitrineError):
    """The template lacks what the local cloud is built from."""


@dataclass(frozen=True)
class FunctionEntry:
    """A function of the template; `handler` is dotted, as in `functions.score.handler`."""

    name: str
    handler: str
    timeout_s: int
    memory_mb: int
    environment: Mapping[str, str]  # the variables with a literal value; references are the account's matter


@dataclass(frozen=True)
class Route:
    """One route of the HTTP API: `GET`, `/v1/health`; the method may be ANY, the path may hold {names}."""

    method: str
    path: str
    function: FunctionEntry


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """CloudFormation's short tags become one-key mappings: `!Ref X` → {"Ref": "X"}."""


def _intrinsic(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _intrinsic)


class Template:
    """The template, read once. Raises InvalidTemplate naming what is missing."""

    def __init__(self, path: Path = TEMPLATE) -> None:
        self.path = path
        try:
            with path.open(encoding="utf-8") as text:
                data = yaml.load(text, _Loader)  # a SafeLoader
        except (OSError, yaml.YAMLError) as error:
            raise InvalidTemplate(f"{path}: {error}; expected the deployment template") from error
        if not isinstance(data, dict) or not isinstance(data.get("Resources"), dict):
            raise InvalidTemplate(f"{path}: no Resources; expected the deployment template")
        self._resources: dict[str, Any] = data["Resources"]
        self._globals: dict[str, Any] = (data.get("Globals") or {}).get("Function") or {}

    def routes(self) -> list[Route]:
        """The HTTP API's routes with the functions behind them."""
        found = [
            Route(str(event["Properties"]["Method"]).upper(), str(event["Properties"]["Path"]), function)
            for function, event in self._events("HttpApi")
        ]
        if not found:
            raise InvalidTemplate(f"{self.path}: no HttpApi event; expected the API's routes")
        return found

    def mapping(self) -> tuple[FunctionEntry, MappingSettings]:
        """The function behind the stream, and its event-source mapping."""
        found = list(self._events("Kinesis"))
        if len(found) != 1:
            raise InvalidTemplate(f"{self.path}: {len(found)} Kinesis events; expected one")
        function, event = found[0]
        return function, _mapping_settings(event["Properties"], f"{self.path}: {function.name}")

    def table(self) -> dict[str, Any]:
        """The user table's properties: of the table that the functions are told of."""
        kind, named = "AWS::DynamoDB::Table", _variables(self._globals).get("VITRINE_TABLE")
        found = self._resources.get(str(named["Ref"])) if isinstance(named, dict) and "Ref" in named else None
        if not found or found.get("Type") != kind:
            raise InvalidTemplate(f"{self.path}: VITRINE_TABLE {named}; expected a reference to an {kind}")
        return dict(found.get("Properties") or {})

    def archiver(self) -> FunctionEntry | None:
        """The function by which Firehose transforms the stream's records; None without such a delivery."""
        for resource in self._resources.values():
            if resource.get("Type") == "AWS::KinesisFirehose::DeliveryStream":
                to = resource["Properties"]["ExtendedS3DestinationConfiguration"]
                (processor,) = to["ProcessingConfiguration"]["Processors"]
                name = processor["Parameters"][0]["ParameterValue"]["Fn::GetAtt"].partition(".")[0]
                return self._function(name, self._resources[name]["Properties"])
        return None

    def stream(self) -> dict[str, Any]:
        """The event stream's properties."""
        return self._only("AWS::Kinesis::Stream")

    def _only(self, kind: str) -> dict[str, Any]:
        found = [r.get("Properties") or {} for r in self._resources.values() if r.get("Type") == kind]
        if len(found) != 1:
            raise InvalidTemplate(f"{self.path}: {len(found)} resources of type {kind}; expected one")
        return dict(found[0])

    def _events(self, kind: str) -> Iterator[tuple[FunctionEntry, dict[str, Any]]]:
        for name, resource in self._resources.items():
            if resource.get("Type") == "AWS::Serverless::Function":
                properties = resource.get("Properties") or {}
                for event in (properties.get("Events") or {}).values():
                    if event.get("Type") == kind:
                        yield self._function(name, properties), event

    def _function(self, name: str, properties: Mapping[str, Any]) -> FunctionEntry:
        merged = {**self._globals, **properties}
        variables = {**_variables(self._globals), **_variables(properties)}
        if "Handler" not in merged:
            raise InvalidTemplate(f"{self.path}: {name} has no Handler; expected module.function")
        return FunctionEntry(
            name,
            str(merged["Handler"]),
            int(merged.get("Timeout", DEFAULT_TIMEOUT_S)),
            int(merged.get("MemorySize", DEFAULT_MEMORY_MB)),
            {key: str(value) for key, value in variables.items() if not isinstance(value, dict)},
        )


def _variables(properties: Mapping[str, Any]) -> dict[str, Any]:
    return dict((properties.get("Environment") or {}).get("Variables") or {})


def _mapping_settings(properties: Mapping[str, Any], place: str) -> MappingSettings:
    if int(properties.get("ParallelizationFactor", 1)) != 1:
        factor = properties["ParallelizationFactor"]
        raise InvalidTemplate(f"{place}: ParallelizationFactor {factor}; expected 1")
    return MappingSettings(
        batch_size=int(properties.get("BatchSize", 100)),
        window_s=float(properties.get("MaximumBatchingWindowInSeconds", 0)),
        bisect=bool(properties.get("BisectBatchOnFunctionError", False)),
        max_retries=int(properties.get("MaximumRetryAttempts", -1)),
        max_age_s=int(properties.get("MaximumRecordAgeInSeconds", -1)),
        reports_failures=REPORTS in (properties.get("FunctionResponseTypes") or []),
    )
