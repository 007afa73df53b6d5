"""Lambda: environments that run the update function, their time limit, and their deaths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, cast

from functions import update
from functions.aws.bundles import Bundles
from functions.aws.quarantine import Quarantine
from functions.aws.rows import Rows
from functions.core.pointer import Pointer
from simulate.bucket import BUCKET, Bucket
from simulate.rollout import InMemory
from simulate.table import TABLE, Table
from simulate.world import DELIVERY_FAULTS, Crash, Invocation, World

CLOCKS = {
    "clock skew of an hour": (-3_600, 3_600),
    "clock skew of a day": (-86_400, 86_400),
    "clock at 1970": (-1_795_521_600 + 1000,),
    "clock at 2100": (2_306_880_000,),
}


class Done(Future[Any]):
    """A call that is over; without the lock of one that is not, which takes longer to make than the call."""

    def __init__(self, result: Any, error: Exception | None = None) -> None:
        self._result, self._error = result, error

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


class InTurn(Executor):
    """Threads as a seed would have them: one call after the other, in any order, each to its end."""

    def __init__(self, world: World) -> None:
        self._world = world

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it now."""
        try:
            return Done(fn(*args, **kwargs))
        except Exception as error:
            return Done(None, error)

    def map(
        self, fn: Any, *iterables: Any, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Call all, in any order; the results are in theirs."""
        calls = list(zip(*iterables, strict=False))
        order = list(range(len(calls)))
        self._world.rng.shuffle(order)
        futures: dict[int, Future[Any]] = {nth: self.submit(fn, *calls[nth]) for nth in order}
        return iter([futures[nth].result() for nth in range(len(calls))])


@dataclass
class Environment:
    """One environment, warm as long as it lives."""

    own: update.Updater
    bundles: InMemory
    skew_s: float
    busy: bool = False


@dataclass(frozen=True)
class Context:
    """What Lambda gives a handler beside its event."""

    world: World
    ends_s: float

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds left."""
        return int(1000 * (self.ends_s - self.world.now_s))


class Function:
    """The update function behind the mapping."""

    def __init__(
        self, world: World, table: Table, bucket: Bucket, named: Callable[[], Pointer], timeout_s: float
    ) -> None:
        self._world, self._table, self._bucket = world, table, bucket
        self._named, self._timeout_s = named, timeout_s
        self._environments: list[Environment] = []

    def invoke(self, event: dict[str, Any]) -> object:
        """Run the handler on a batch; raises RuntimeError where the environment died of it."""
        world = self._world
        environment = self._idle()
        fault = world.fault(DELIVERY_FAULTS)
        time_s = world.rng.choice((1.0, 15.01, 15.1, 17.0)) if fault == "short of time" else self._timeout_s
        if world.now_s < world.slow_until_s and world.rng.random() < 0.5:
            time_s = world.rng.choice((15.1, 20.0, 25.0))
        space = environment.bundles.space
        invocation = Invocation(world.now_s + time_s, space, skew_s=environment.skew_s)
        world.invocations.append(invocation)
        environment.busy = True
        try:
            answer = update.handle(environment.own, event, Context(world, invocation.ends_s))
            world.require_alive()
        except Crash:
            answer = None
        except Exception as error:
            world.wrong(f"the handler raised {error!r}")
            raise
        finally:
            world.invocations.pop()
            environment.busy = False
        if invocation.crashed or fault == "crash after answer":
            self._environments.remove(environment)
            raise RuntimeError("the environment has died")
        self._check(answer, event)
        return answer

    def end_all(self) -> None:
        """A deployment: all environments that are idle are cold from here on."""
        self._environments = [e for e in self._environments if e.busy]

    def _idle(self) -> Environment:
        idle = [e for e in self._environments if not e.busy]
        if idle and self._world.rng.random() < 0.9:
            return self._world.rng.choice(idle)
        if self._environments:
            self._world.happened("cold start")
        environment = self._cold()
        self._environments.append(environment)
        return environment

    def _cold(self) -> Environment:
        world = self._world
        skew_s, start_s = 0.0, world.now_s
        if not world.calm and world.rng.random() < 0.15:
            kind = world.rng.choice(list(CLOCKS))
            world.happened(kind)
            skew_s = world.rng.choice(CLOCKS[kind])
        machine = update.Machine(
            monotonic=lambda: world.now_s - start_s,
            wall=lambda: world.now_s + skew_s,
            random=world.rng.randbytes,
        )
        bundles = InMemory(world, self._named)
        own = update.Updater(
            Rows(self._table, TABLE, sleep=world.sleep),
            cast(Bundles, bundles),
            Quarantine(self._bucket, BUCKET),
            InTurn(world),
            machine,
        )
        return Environment(own, bundles, skew_s)

    def _check(self, answer: object, event: dict[str, Any]) -> None:
        """An answer is a dict with one failure at most, and that of this batch."""
        sequences = {record["kinesis"]["sequenceNumber"] for record in event["Records"]}
        failures = answer.get("batchItemFailures") if isinstance(answer, dict) else None
        if not isinstance(failures, list) or len(failures) > 1:
            self._world.wrong(f"the function answered {answer!r}")
        elif failures and failures[0].get("itemIdentifier") not in sequences:
            self._world.wrong(f"the function answered {answer!r}, which is not of its batch")
        elif failures:
            self._world.happened("partial failure")
