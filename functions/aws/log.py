"""The event log: a Kinesis stream, one record per event, in order per user."""

from __future__ import annotations

from typing import Any, NamedTuple

from functions.aws.clients import client, unavailable
from functions.aws.errors import Failure


class Position(NamedTuple):
    """Where in the log a record is."""

    shard: str
    sequence: str


def log_client() -> Any:
    """Tries again, but not for long: the caller waits, and can send the events again itself."""
    return client("kinesis", connect_s=0.5, read_s=1.5, attempts=3)


class Log:
    """The stream. PutRecord and not PutRecords, which does not keep order when one record fails."""

    def __init__(self, kinesis: Any, stream: str) -> None:
        self._kinesis, self._stream = kinesis, stream

    def put(self, user_key: str, data: bytes, after: str | None = None) -> Position:
        """Append one record of a user and return where it is; raises Unavailable, Throttled.

        `after` is the sequence number of the user's record before it: the log then keeps their order.
        A lost answer may leave the record in the log twice; whoever folds it knows it by its event id.
        """
        order = {"SequenceNumberForOrdering": after} if after else {}
        try:
            answer = self._kinesis.put_record(
                StreamName=self._stream, PartitionKey=user_key, Data=data, **order
            )
        except Failure as error:
            raise unavailable(error, f"record into {self._stream}") from error
        return Position(str(answer["ShardId"]), str(answer["SequenceNumber"]))
