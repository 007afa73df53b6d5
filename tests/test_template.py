"""What the deployment template must say, and that each of these checks sees the bug it is there for."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.aws.settings import Settings
from functions.aws.telemetry import emit
from local.template import Template

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "template.yaml").read_text(encoding="utf-8")
FUNCTIONS = {
    "ScoreFunction": "score",
    "CollectFunction": "collect",
    "MeFunction": "me",
    "UpdateFunction": "update",
    "ArchiveFunction": "archive",
}
READ_BY_FIREHOSE = ("DescribeStream", "GetRecords", "GetShardIterator", "ListShards")
ROLES = {f"{module.title()}Role" for module in FUNCTIONS.values()}
DAY_S = 86_400


class CloudFormation(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """`!GetAtt A.B` becomes {"GetAtt": "A.B"}, so that a reference can be compared with another."""


def _tag(loader: CloudFormation, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    return {suffix: loader.construct_sequence(node, deep=True)}


CloudFormation.add_multi_constructor("!", _tag)


def arn(resource: str, below: str = "") -> dict[str, str]:
    """How the template names a resource, or what lies below it."""
    return {"Sub": f"${{{resource}.Arn}}/{below}"} if below else {"GetAtt": f"{resource}.Arn"}


class Stack:
    """The template under test, parsed from `text`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.data: dict[str, Any] = yaml.load(text, CloudFormation)  # a SafeLoader

    def resource(self, name: str) -> dict[str, Any]:
        return dict(self.data["Resources"][name])

    def __getitem__(self, name: str) -> dict[str, Any]:
        return dict(self.resource(name)["Properties"])

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        resources = self.data["Resources"].items()
        return {name: r.get("Properties", {}) for name, r in resources if r["Type"] == kind}

    def function(self, name: str) -> dict[str, Any]:
        return {**self.data["Globals"]["Function"], **self[name]}

    def statements(self, role: str) -> Iterator[dict[str, Any]]:
        for policy in self[role]["Policies"]:
            yield from policy["PolicyDocument"]["Statement"]

    def allowed(self, role: str) -> set[tuple[str, str]]:
        """(action, resource) pairs; a resource as JSON."""
        return {
            (action, json.dumps(statement["Resource"]))
            for statement in self.statements(role)
            if statement["Effect"] == "Allow"
            for action in as_list(statement["Action"])
        }


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def pairs(*granted: tuple[str, dict[str, str]]) -> set[tuple[str, str]]:
    return {(action, json.dumps(resource)) for action, resource in granted}


def logs(name: str) -> tuple[tuple[str, dict[str, str]], ...]:
    return ("logs:CreateLogStream", arn(name)), ("logs:PutLogEvents", arn(name))


def check_functions(stack: Stack) -> None:
    assert set(stack.of_type("AWS::Serverless::Function")) == set(FUNCTIONS)
    makefile = (ROOT / "functions" / "Makefile").read_text()
    for name, module in FUNCTIONS.items():
        function = stack.function(name)
        assert function["Handler"] == f"functions.{module}.handler"
        assert (function["Runtime"], function["Architectures"]) == ("python3.12", ["x86_64"])
        assert (function["CodeUri"], stack.resource(name)["Metadata"]) == (
            "functions/",
            {"BuildMethod": "makefile"},
        )
        assert re.search(rf"^[^#\n]*\bbuild-{name}\b[^\n]*:", makefile, re.MULTILINE)
        assert 512 <= stack[name]["MemorySize"] <= 3008  # stated by itself, not inherited
        assert (
            10 <= stack[name]["Timeout"] <= (60 if module in ("update", "archive") else 29)
        )  # the API itself waits 30 s
        assert function["Role"] == arn(f"{module.title()}Role")


def check_environment(stack: Stack) -> None:
    variables = stack.data["Globals"]["Function"]["Environment"]["Variables"]
    assert variables == {
        "VITRINE_TABLE": {"Ref": "UserTable"},
        "VITRINE_STREAM": {"Ref": "EventStream"},
        "VITRINE_BUCKET": {"Ref": "BundleBucket"},
        "VITRINE_SECRET": {"Ref": "ShopSecret"},
        "VITRINE_KEYS": {"Ref": "KeyTable"},
        "VITRINE_DEADLINE_MS": "40",
    }
    names = {name: value if isinstance(value, str) else "x" for name, value in variables.items()}
    assert Settings.from_environment(names).deadline_ms == 40


def check_api(stack: Stack) -> None:
    assert list(stack.of_type("AWS::Serverless::HttpApi")) == ["Api"]
    api = stack["Api"]
    assert api["DefaultRouteSettings"] == {
        "ThrottlingRateLimit": {"Ref": "RequestsPerSecond"},
        "ThrottlingBurstLimit": {"Ref": "RequestBurst"},
    }
    cors = api["CorsConfiguration"]
    assert cors["AllowOrigins"] == {"Ref": "AllowedOrigins"}
    assert set(cors["AllowMethods"]) == {"DELETE", "GET", "POST"}
    assert set(cors["AllowHeaders"]) == {"authorization", "content-type"}
    assert "server-timing" in cors["ExposeHeaders"]
    assert "AllowCredentials" not in cors  # the credential is a header that pages set themselves
    found = set()
    for name in FUNCTIONS:
        for event in stack[name].get("Events", {}).values():
            if event["Type"] == "HttpApi":
                properties = event["Properties"]
                assert properties["ApiId"] == {"Ref": "Api"}
                assert properties["PayloadFormatVersion"] == "2.0"
                found.add((properties["Method"], properties["Path"], FUNCTIONS[name]))
    assert found == {
        ("POST", "/v1/banners", "score"),
        ("POST", "/v1/visitors", "score"),
        ("GET", "/v1/health", "score"),
        ("GET", "/v1/me", "score"),
        ("DELETE", "/v1/me", "me"),
        ("POST", "/v1/events", "collect"),
    }


def check_table(stack: Stack) -> None:
    assert list(stack.of_type("AWS::DynamoDB::Table")) == ["UserTable", "KeyTable"]
    table = stack["UserTable"]
    assert table["AttributeDefinitions"] == [{"AttributeName": "pk", "AttributeType": "S"}]
    assert table["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
    assert table["SSESpecification"] == {"SSEEnabled": True}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}


def check_archive(stack: Stack) -> None:
    keys = stack["KeyTable"]
    assert keys["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": False}
    assert keys["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]
    assert keys["SSESpecification"] == {"SSEEnabled": True}
    assert keys["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
    delivery = stack["Archive"]
    assert delivery["DeliveryStreamType"] == "KinesisStreamAsSource"
    assert delivery["KinesisStreamSourceConfiguration"]["KinesisStreamARN"] == arn("EventStream")
    to = delivery["ExtendedS3DestinationConfiguration"]
    assert (to["BucketARN"], to["CompressionFormat"]) == (arn("BundleBucket"), "UNCOMPRESSED")
    assert to["Prefix"].startswith("archive/") and to["ErrorOutputPrefix"].startswith("archive-failed/")
    (processor,) = to["ProcessingConfiguration"]["Processors"]
    assert to["ProcessingConfiguration"]["Enabled"] is True and processor["Type"] == "Lambda"
    assert processor["Parameters"][0] == {
        "ParameterName": "LambdaArn",
        "ParameterValue": arn("ArchiveFunction"),
    }
    rules = {rule["Id"]: rule for rule in stack["BundleBucket"]["LifecycleConfiguration"]["Rules"]}
    failed = rules["archive-failed"]  # what could not be sealed is not kept
    assert (failed["Prefix"], failed["ExpirationInDays"]) == ("archive-failed/", 7)


def check_kept(stack: Stack) -> None:
    for name in ("UserTable", "KeyTable", "BundleBucket", "ShopSecret"):
        resource = stack.resource(name)
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain"), name
    # CloudFormation must not write the keys: the next deployment would undo a rotation
    assert not {"SecretString", "GenerateSecretString"} & set(stack["ShopSecret"])


def check_bucket(stack: Stack) -> None:
    bucket = stack["BundleBucket"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] in ("AES256", "aws:kms")
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
    assert all(rule["Status"] == "Enabled" for rule in rules.values())
    assert rules["quarantine"]["Prefix"] == "quarantine/"
    assert rules["quarantine"]["ExpirationInDays"] == 90
    assert [name for name, rule in rules.items() if "ExpirationInDays" in rule] == [
        "quarantine",
        "archive-failed",
    ]
    policy = stack["BundleBucketPolicy"]
    (only_tls,) = policy["PolicyDocument"]["Statement"]
    assert policy["Bucket"] == {"Ref": "BundleBucket"}
    assert (only_tls["Effect"], only_tls["Principal"], only_tls["Action"]) == ("Deny", "*", "s3:*")
    assert only_tls["Resource"] == [arn("BundleBucket"), arn("BundleBucket", "*")]
    assert only_tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def check_stream(stack: Stack) -> None:
    stream = stack["EventStream"]
    assert stream["StreamModeDetails"] == {"StreamMode": "ON_DEMAND"}
    assert stream["StreamEncryption"] == {"EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"}
    (event,) = stack["UpdateFunction"]["Events"].values()
    assert event["Type"] == "Kinesis"
    mapping = event["Properties"]
    assert (mapping["Stream"], mapping["StartingPosition"]) == (arn("EventStream"), "TRIM_HORIZON")
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["BisectBatchOnFunctionError"] is True
    assert mapping["ParallelizationFactor"] == 1
    assert mapping["MaximumBatchingWindowInSeconds"] == 0
    # nothing is given up for having failed often; what is too old is told to the queue while it can be read
    assert mapping["MaximumRetryAttempts"] == -1
    kept_s = stream["RetentionPeriodHours"] * 3600
    assert 3 * DAY_S <= mapping["MaximumRecordAgeInSeconds"] <= kept_s - DAY_S
    assert mapping["DestinationConfig"] == {
        "OnFailure": {"Type": "SQS", "Destination": arn("DiscardedQueue")}
    }
    queue = stack["DiscardedQueue"]
    assert queue["SqsManagedSseEnabled"] is True
    assert queue["MessageRetentionPeriod"] == 14 * DAY_S


SECRET = ("secretsmanager:GetSecretValue", {"Ref": "ShopSecret"})
BUNDLES = (("s3:GetObject", arn("BundleBucket", "*")), ("s3:ListBucket", arn("BundleBucket")))
READ_STREAM = ("DescribeStream", "DescribeStreamSummary", "GetRecords", "GetShardIterator", "ListShards")


def check_permissions(stack: Stack) -> None:
    assert stack.allowed("ScoreRole") == pairs(
        ("dynamodb:GetItem", arn("UserTable")), SECRET, *BUNDLES, *logs("ScoreLogs")
    )
    assert stack.allowed("CollectRole") == pairs(
        ("kinesis:PutRecord", arn("EventStream")), SECRET, *logs("CollectLogs")
    )
    assert stack.allowed("MeRole") == pairs(
        ("kinesis:PutRecord", arn("EventStream")),
        *((f"dynamodb:{action}", arn("UserTable")) for action in ("GetItem", "PutItem")),
        *((f"dynamodb:{action}", arn("KeyTable")) for action in ("BatchGetItem", "PutItem")),
        SECRET,
        *logs("MeLogs"),
    )
    assert stack.allowed("ArchiveRole") == pairs(
        *((f"dynamodb:{action}", arn("KeyTable")) for action in ("BatchGetItem", "PutItem")),
        *logs("ArchiveLogs"),
    )
    assert {action for action, _ in stack.allowed("DeliveryRole")} == {
        *(f"kinesis:{action}" for action in READ_BY_FIREHOSE),
        "lambda:InvokeFunction",
        *(f"s3:{action}" for action in ("AbortMultipartUpload", "PutObject")),
        *(f"s3:{action}" for action in ("GetBucketLocation", "ListBucket")),
    }
    assert stack.allowed("UpdateRole") == pairs(
        *((f"kinesis:{action}", arn("EventStream")) for action in READ_STREAM),
        *((f"dynamodb:{action}", arn("UserTable")) for action in ("BatchGetItem", "GetItem", "PutItem")),
        ("sqs:SendMessage", arn("DiscardedQueue")),
        ("s3:PutObject", arn("BundleBucket", "quarantine/*")),
        *BUNDLES,
        *logs("UpdateLogs"),
    )
    for role in ("ScoreRole", "UpdateRole"):  # what was put aside holds events, and is for people
        denied = [s for s in stack.statements(role) if s["Effect"] == "Deny"]
        assert [(s["Action"], s["Resource"]) for s in denied] == [
            ("s3:GetObject", arn("BundleBucket", "quarantine/*"))
        ]


def check_nothing_is_granted_at_large(stack: Stack) -> None:
    roles = stack.of_type("AWS::IAM::Role")
    assert set(roles) == ROLES | {"DeliveryRole"}
    for name, role in roles.items():
        assert "ManagedPolicyArns" not in role  # AWS's own grant "*"
        (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
        service = "firehose" if name == "DeliveryRole" else "lambda"
        assert trust["Principal"] == {"Service": f"{service}.amazonaws.com"}
        for statement in stack.statements(name):
            assert {"Effect", "Action", "Resource"} == set(statement), f"{name}: {statement}"
            assert not any("*" in action for action in as_list(statement["Action"])), f"{name}: {statement}"
            for resource in as_list(statement["Resource"]):
                assert isinstance(resource, dict), (
                    f"{name}: {resource}; expected one of the stack's resources"
                )


def check_logs(stack: Stack) -> None:
    groups = stack.of_type("AWS::Logs::LogGroup")
    assert set(groups) == {"ScoreLogs", "CollectLogs", "MeLogs", "UpdateLogs", "ArchiveLogs", "ApiLogs"}
    assert {group["RetentionInDays"] for group in groups.values()} == {30}
    for name, module in FUNCTIONS.items():
        assert stack[name]["LoggingConfig"]["LogGroup"] == {"Ref": f"{module.title()}Logs"}
    access = stack["Api"]["AccessLogSettings"]
    assert access["DestinationArn"] == arn("ApiLogs")
    assert set(json.loads(access["Format"])) == {"id", "route", "status", "ms", "error"}
    assert not re.search("identity|authoriz|header", access["Format"])  # nothing of the visitor


def check_alarms(stack: Stack) -> None:
    alarms = stack.of_type("AWS::CloudWatch::Alarm")
    seen = {}
    for name, alarm in alarms.items():
        assert alarm["AlarmActions"]["If"][:2] == ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}]], name
        assert (alarm["ComparisonOperator"], alarm["TreatMissingData"]) == (
            "GreaterThanThreshold",
            "notBreaching",
        )
        (dimension,) = alarm["Dimensions"]
        seen[alarm["Namespace"], alarm["MetricName"]] = (dimension, alarm["Statistic"], alarm["Threshold"])
    assert seen == {
        ("AWS/Lambda", "IteratorAge"): (
            {"Name": "FunctionName", "Value": {"Ref": "UpdateFunction"}},
            "Maximum",
            60_000,
        ),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): (
            {"Name": "QueueName", "Value": {"GetAtt": "DiscardedQueue.QueueName"}},
            "Maximum",
            0,
        ),
        ("Vitrine", "RecordsQuarantined"): ({"Name": "service", "Value": "vitrine"}, "Sum", 0),
        ("AWS/ApiGateway", "5xx"): ({"Name": "ApiId", "Value": {"Ref": "Api"}}, "Sum", 0),
    }


def check_outputs(stack: Stack) -> None:
    assert {name: output["Value"] for name, output in stack.data["Outputs"].items()} == {
        "ApiUrl": {"GetAtt": "Api.ApiEndpoint"},
        "BundleBucketName": {"Ref": "BundleBucket"},
        "ShopSecretArn": {"Ref": "ShopSecret"},
        "UserTableName": {"Ref": "UserTable"},
        "KeyTableName": {"Ref": "KeyTable"},
        "EventStreamName": {"Ref": "EventStream"},
        "DiscardedQueueUrl": {"Ref": "DiscardedQueue"},
    }


CHECKS: list[Callable[[Stack], None]] = [
    check_functions,
    check_environment,
    check_api,
    check_table,
    check_archive,
    check_kept,
    check_bucket,
    check_stream,
    check_permissions,
    check_nothing_is_granted_at_large,
    check_logs,
    check_alarms,
    check_outputs,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_template(check: Callable[[Stack], None]) -> None:
    check(Stack(TEXT))


@pytest.mark.parametrize(
    "check, before, after",
    [
        (check_functions, "functions.update.handler", "update.handler"),
        (check_functions, "Timeout: 25", "Timeout: 30"),
        (check_functions, "x86_64", "arm64"),
        (check_environment, "VITRINE_BUCKET", "VITRINE_BUKET"),
        (check_environment, 'DEADLINE_MS: "40"', 'DEADLINE_MS: "0"'),
        (check_api, "Path: /v1/health", "Path: /health"),
        (check_api, "!Ref AllowedOrigins", "['*']"),
        (check_api, "ThrottlingBurstLimit", "BurstLimit"),
        (check_table, "AttributeName: ttl", "AttributeName: expires"),
        (check_table, "PointInTimeRecoveryEnabled: true", "PointInTimeRecoveryEnabled: false"),
        (check_archive, "PointInTimeRecoveryEnabled: false", "PointInTimeRecoveryEnabled: true"),
        (check_archive, "KinesisStreamAsSource", "DirectPut"),
        (
            check_archive,
            "ParameterValue: !GetAtt ArchiveFunction.Arn",
            "ParameterValue: !GetAtt MeFunction.Arn",
        ),
        (check_kept, "DeletionPolicy: Retain", "DeletionPolicy: Delete"),
        (check_kept, "      Description: 'Vitrine", "      SecretString: 'Vitrine"),
        (check_bucket, "IgnorePublicAcls: true", "IgnorePublicAcls: false"),
        (check_bucket, 'aws:SecureTransport: "false"', 'aws:SecureTransport: "true"'),
        (check_bucket, "Prefix: quarantine/", 'Prefix: ""'),
        (check_stream, "[ReportBatchItemFailures]", "[]"),
        (check_stream, "MaximumRetryAttempts: -1", "MaximumRetryAttempts: 100"),
        (check_stream, "MaximumRecordAgeInSeconds: 518400", "MaximumRecordAgeInSeconds: -1"),
        (check_stream, "RetentionPeriodHours: 168", "RetentionPeriodHours: 144"),
        (check_permissions, "Action: dynamodb:GetItem", "Action: dynamodb:DeleteItem"),
        (check_permissions, "- Effect: Deny", "- Effect: Allow"),
        (check_permissions, '"${BundleBucket.Arn}/quarantine/*"', '"${BundleBucket.Arn}/*"'),
        (check_nothing_is_granted_at_large, "kinesis:PutRecord", "kinesis:*"),
        (check_nothing_is_granted_at_large, "Resource: !GetAtt UserTable.Arn", 'Resource: "*"'),
        (check_logs, "RetentionInDays: 30", "RetentionInDays: 3653"),
        (check_logs, "$context.requestId", "$context.identity.sourceIp"),
        (check_alarms, "Threshold: 60000", "Threshold: 6000000"),
        (check_alarms, "MetricName: RecordsQuarantined", "MetricName: Quarantined"),
        (check_outputs, "!GetAtt Api.ApiEndpoint", "!Ref Api"),
    ],
)
def test_a_planted_bug_is_seen(check: Callable[[Stack], None], before: str, after: str) -> None:
    assert before in TEXT
    with pytest.raises(AssertionError):
        check(Stack(TEXT.replace(before, after, 1)))


def test_the_local_cloud_reads_this_template() -> None:
    template = Template()
    assert len(template.routes()) == 6
    function, mapping = template.mapping()
    assert (function.handler, mapping.max_retries) == ("functions.update.handler", -1)
    assert template.table()["KeySchema"][0]["AttributeName"] == "pk"
    assert template.stream()["StreamModeDetails"] == {"StreamMode": "ON_DEMAND"}


@pytest.mark.parametrize("module", FUNCTIONS.values())
def test_the_handlers_are_there(module: str) -> None:
    assert callable(importlib.import_module(f"functions.{module}").handler)


def test_the_functions_may_do_what_they_do() -> None:
    """Every call of a client in functions/aws is allowed to some function, and no other data action is."""
    services = {"secrets_manager": "secretsmanager"}
    called = {
        (services.get(service, service), operation.replace("_", ""))
        for path in (ROOT / "functions" / "aws").glob("*.py")
        for service, operation in re.findall(
            r"self\._(dynamodb|kinesis|s3|secrets_manager)\.(\w+)\(", path.read_text()
        )
    }
    assert ("dynamodb", "getitem") in called
    stack = Stack(TEXT)
    granted = {tuple(action.lower().split(":")) for role in ROLES for action, _ in stack.allowed(role)}
    by_lambda = {("kinesis", action.lower()) for action in READ_STREAM} | {("sqs", "sendmessage")}
    logging = {("logs", "createlogstream"), ("logs", "putlogevents")}
    assert granted - by_lambda - logging - {("s3", "listbucket")} == called


def test_the_quarantine_alarm_hears_what_the_functions_say(capsys: pytest.CaptureFixture[str]) -> None:
    alarm = Stack(TEXT)["QuarantineAlarm"]
    emit({alarm["MetricName"]: 1})
    said = json.loads(capsys.readouterr().out)
    (metric,) = said["_aws"]["CloudWatchMetrics"]
    assert (metric["Namespace"], metric["Dimensions"]) == (alarm["Namespace"], [["service"]])
    assert [{"Name": "service", "Value": said["service"]}] == alarm["Dimensions"]
    assert f'"{alarm["MetricName"]}"' in (ROOT / "functions" / "update.py").read_text()


def test_samconfig_gives_every_parameter_that_has_no_default() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())["default"]
    given = dict(pair.split("=", 1) for pair in config["deploy"]["parameters"]["parameter_overrides"].split())
    parameters = Stack(TEXT).data["Parameters"]
    assert {name for name, parameter in parameters.items() if "Default" not in parameter} == set(given)
    assert re.fullmatch(parameters["AllowedOrigins"]["AllowedPattern"], given["AllowedOrigins"])
    assert config["deploy"]["parameters"]["capabilities"] == "CAPABILITY_IAM"
