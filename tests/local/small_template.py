"""A template with small handlers behind two routes and a stream."""

from __future__ import annotations

from pathlib import Path

TEXT = """
Transform: AWS::Serverless-2016-10-31
Globals:
  Function:
    Timeout: 5
    MemorySize: 512
    Environment:
      Variables:
        VITRINE_TABLE: !Ref Rows
        KEEP_IN: {folder}
Resources:
  Rows:
    Type: AWS::DynamoDB::Table
    Properties:
      TableName: !Sub "${{AWS::StackName}}-rows"
      AttributeDefinitions: [{{AttributeName: pk, AttributeType: S}}]
      KeySchema: [{{AttributeName: pk, KeyType: HASH}}]
      BillingMode: PAY_PER_REQUEST
      TimeToLiveSpecification: {{AttributeName: ttl, Enabled: true}}
  Events:
    Type: AWS::Kinesis::Stream
    Properties:
      StreamModeDetails: {{StreamMode: ON_DEMAND}}
  Echo:
    Type: AWS::Serverless::Function
    Properties:
      Handler: tests.local.small_handlers.echo
      Events:
        Any: {{Type: HttpApi, Properties: {{Method: any, Path: /echo}}}}
        Named: {{Type: HttpApi, Properties: {{Method: GET, Path: "/echo/{{name}}"}}}}
        Greedy: {{Type: HttpApi, Properties: {{Method: GET, Path: "/echo/{{rest+}}"}}}}
        Fixed: {{Type: HttpApi, Properties: {{Method: GET, Path: /echo/fixed}}}}
  Bare:
    Type: AWS::Serverless::Function
    Properties:
      Handler: tests.local.small_handlers.bare
      Timeout: 29
      Events:
        Health: {{Type: HttpApi, Properties: {{Method: get, Path: /v1/health, ApiId: !Ref Api}}}}
  Keep:
    Type: AWS::Serverless::Function
    Properties:
      Handler: tests.local.small_handlers.keep
      Events:
        Log:
          Type: Kinesis
          Properties:
            Stream: !GetAtt Events.Arn
            StartingPosition: TRIM_HORIZON
            BatchSize: 50
            MaximumBatchingWindowInSeconds: 0
            BisectBatchOnFunctionError: true
            MaximumRetryAttempts: 3
            MaximumRecordAgeInSeconds: 3600
            FunctionResponseTypes: [ReportBatchItemFailures]
"""


def write_template(folder: Path) -> Path:
    """The template in a file of `folder`, where the small handlers leave their traces too."""
    path = folder / "template.yaml"
    path.write_text(TEXT.format(folder=folder))
    return path
