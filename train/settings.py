"""The model's shape and its training options by name: what `--set` gives and what a search varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from train.options import Options
from train.towers import Shape

FROM_THE_LOG = ("items", "categories", "brands", "vectors", "devices", "slots")  # counted, not chosen
OF_THE_RUN = ("seed", "save_every_s")  # nothing that makes a model better

Value = int | float | str
Values = Mapping[str, Value]


def settings(shape: Shape, options: Options) -> dict[str, Value]:
    """Every name that can be set, with the value it has."""
    fixed = {*FROM_THE_LOG, *OF_THE_RUN}
    return {name: value for name, value in (asdict(shape) | asdict(options)).items() if name not in fixed}


def changed(shape: Shape, options: Options, values: Values) -> tuple[Shape, Options]:
    """Both with these values; raises ValueError on an unknown name or an impossible value."""
    known = settings(shape, options)
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{unknown[0]!r} is no setting; expected one of {', '.join(known)}")
    of_shape = {name: value for name, value in values.items() if hasattr(shape, name)}
    of_options = {name: value for name, value in values.items() if name not in of_shape}
    return replace(shape, **of_shape), replace(options, **of_options)  # type: ignore[arg-type]


def read(assignments: Sequence[str], known: Values) -> dict[str, Value]:
    """`name=value` texts, each value of the type that `known` has under the name. Raises ValueError."""
    found: dict[str, Value] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or name not in known:
            raise ValueError(f"--set {assignment}: expected NAME=VALUE with one of {', '.join(known)}")
        expected = type(known[name])
        try:
            found[name] = expected(text)
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {text!r}; expected {expected.__name__}") from error
    return found


def shown(values: Values) -> str:
    """As a command line gives them."""
    return " ".join(f"--set {name}={value}" for name, value in values.items())
