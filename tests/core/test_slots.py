import json

import pytest

from functions.core.errors import CorruptBundle
from functions.core.slots import DEFAULT_SLOTS, MAX_K, Slot, dump_slots, load_slots, parse_slots


def test_defaults():
    assert list(DEFAULT_SLOTS) == ["home", "product", "cart"]
    assert all(name == slot.name for name, slot in DEFAULT_SLOTS.items())


def test_round_trip(tmp_path):
    path = tmp_path / "slots.json"
    path.write_text(dump_slots(DEFAULT_SLOTS), encoding="utf-8")
    assert load_slots(path) == DEFAULT_SLOTS


def test_what_is_left_out_has_a_default():
    assert parse_slots('{"side": {"max_k": 4}}') == {"side": Slot("side", max_k=4)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_k", 0),
        ("max_k", MAX_K + 1),
        ("max_k", True),
        ("max_k", "4"),
        ("default_k", 13),
        ("default_k", 0),
        ("policy", "best"),
        ("policy", ["greedy"]),
        ("temperature", 0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("epsilon", -0.1),
        ("epsilon", 1.1),
        ("cap", -1),
        ("cap", 1.5),
        ("label", None),
        ("epsilon", 10**400),
    ],
)
def test_a_bad_value_is_named(field, value):
    with pytest.raises(CorruptBundle, match=rf"{field} .*expected .*home"):
        parse_slots(json.dumps({"home": {field: value}}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"home": 3}', '{"": {}}', '{"home": {"name": "x"}}'])
def test_a_bad_shape_is_refused(text):
    with pytest.raises(CorruptBundle, match=r"expected|not JSON"):
        parse_slots(text)


def test_an_unknown_field_is_named():
    with pytest.raises(CorruptBundle, match="colour"):
        parse_slots('{"home": {"colour": "red"}}')
