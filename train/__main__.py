"""`python -m train`: a behaviour log and a catalogue → a checkpoint, metrics.json and a model card.

What is not given comes from rules that look at the log alone: how many items, how long the histories. One
Ctrl-C, or SIGTERM, ends the training after the running step; `--resume` goes on from there. On several GPUs:
`torchrun --nproc-per-node 4 -m train …`. docs/training.md is the guide.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from functions.core.errors import VitrineError
from train.card import CARD
from train.engines import ENGINES
from train.fit import UNFINISHED
from train.group import command, process_group, speaks_for_its_machine
from train.options import LOSSES, Options
from train.report import Report
from train.run import METRICS, Asked, run
from train.search import SEARCH
from train.split import SPLITS
from train.stopping import Stopped
from train.trainer import Diverged

FRESHNESS_EVENTS = 2_000
INTERRUPTED = 130  # as a shell says of Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Read, train, evaluate, write; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    asked = _asked(given)
    if asked.out.exists() and not asked.out.is_dir():
        return _failed(f"--out {asked.out}: a file; expected a folder, which is made where it is not there")
    with process_group() as first:
        try:
            report = run(asked, first)
        except (VitrineError, ValueError, OSError) as error:
            return _failed(str(error))
        except (Diverged, FloatingPointError) as error:  # the latter of what float16 rows cannot hold
            return _failed(f"{error}; a smaller learning_rate may help: --set learning_rate=…")
        except KeyboardInterrupt as interrupt:
            return _interrupted(interrupt, asked.out, given)
    if first:
        _tell(report, asked)
    return 0


def _failed(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 1


def _interrupted(interrupt: KeyboardInterrupt, out: Path, given: list[str]) -> int:
    """Say where it stopped and how it goes on; 128 + the signal's number, as shells count."""
    status = 128 + interrupt.number if isinstance(interrupt, Stopped) else INTERRUPTED
    if not speaks_for_its_machine():
        return status
    where = f" by {interrupt}" if isinstance(interrupt, Stopped) else ""
    print(f"interrupted{where}", file=sys.stderr)
    if (out / UNFINISHED).exists() or (out / SEARCH).exists() or list(out.glob(f"trials/*/{UNFINISHED}")):
        again = given if "--resume" in given else [*given, "--resume"]
        print(f"go on with: {command('train', again)}", file=sys.stderr)
    return status


def _tell(report: Report, asked: Asked) -> None:
    shown = ("test", "test_masked", "baselines", "baselines_masked")
    print(json.dumps({name: report[name] for name in shown if name in report}, indent=1))
    written = [METRICS, CARD] if asked.card else [METRICS]
    print(f"in {asked.out}: checkpoint, {', '.join(written)}", flush=True)


def _asked(arguments: list[str]) -> Asked:
    parser = argparse.ArgumentParser(
        prog="python -m train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--events",
        required=True,
        help="the log: a file, folder or s3:// address (.csv, .tsv, .jsonl, .json, .parquet), or a "
        "benchmark's file of `user item` lines (.txt, .txt.xz, .txt.gz)",
    )
    data.add_argument("--items", help="the catalogue: a file, folder or s3:// address")
    data.add_argument("--map", help="TOML file that maps the columns of both (train/maps has examples)")
    data.add_argument("--engine", choices=ENGINES, default=Asked.engine, help="what cleans the log")
    data.add_argument(
        "--split",
        choices=SPLITS,
        help="what is the test: the latest tenth of the events, or each user's last event (default: time; "
        "leave-one-out for `user item` lines, which have no times)",
    )
    _training(parser.add_argument_group("training"))
    _results(parser.add_argument_group("results"))
    return Asked(**_fields(parser.parse_args(arguments)))


def _training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a field of train.options.Options or of train.towers.Shape, instead of what the rules say; "
        "may be given again, e.g. --set dropout=0.3 --set window=100",
    )
    group.add_argument("--epochs", type=int, help="at most; short for --set epochs=…")
    group.add_argument("--loss", choices=LOSSES, help="short for --set loss=…")
    group.add_argument("--seed", type=int, default=Options.seed, help="of weights, batches and samples (0)")
    group.add_argument(
        "--search",
        type=_trials,
        default=0,
        metavar="N",
        help="train N times to find better settings than the rules', judged on validation; what is --set is "
        "not varied; the best of the N is the checkpoint, search.json has them all",
    )
    group.add_argument(
        "--hold-validation",
        action="store_true",
        help="keep the weights that the validation has judged; else, split by time, a second training learns "
        "from the validation's events too, as many epochs as were best, and is what is tested and kept",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with the training or search that was ended in --out"
    )


def _results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", required=True, type=Path, help="folder for the checkpoint and its reports")
    group.add_argument(
        "--freshness-events",
        type=int,
        default=FRESHNESS_EVENTS,
        metavar="N",
        help="events of the test on which fresh state is compared with frozen state, 0 for none "
        f"({FRESHNESS_EVENTS:,}); only with --split time",
    )
    group.add_argument("--no-card", dest="card", action="store_false", help="no model card, no pictures")


def _trials(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} trainings; expected at least 1")
    return number


def _fields(parsed: argparse.Namespace) -> dict[str, Any]:
    """The arguments as fields of Asked; the short forms come last, so that they hold."""
    fields = vars(parsed)
    for name in ("epochs", "loss"):
        value = fields.pop(name)
        if value is not None:
            fields["assignments"] = [*fields["assignments"], f"{name}={value}"]
    return fields


if __name__ == "__main__":
    sys.exit(main())
