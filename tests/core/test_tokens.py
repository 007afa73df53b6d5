import json
from base64 import urlsafe_b64encode

import pytest

from functions.core.errors import InvalidToken, VitrineError
from functions.core.tokens import MAX_TOKEN_CHARS, Decision, Keys, sign, verify

OLD, NEW = b"o" * 32, b"n" * 32
KEYS = Keys({"2026-10": OLD, "2026-11": NEW}, "2026-11")
DECISION = Decision("u" * 22, "home", "i1", "plain", 2, "champion", "softmax", 0.125, "b1", 7, 2_000)


def _part(value):
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_round_trip():
    assert verify(sign({"sub": "ann", "exp": 10}, KEYS), KEYS, 9) == {"sub": "ann", "exp": 10}


def test_agrees_with_pyjwt_in_both_directions():
    jwt = pytest.importorskip("jwt")
    claims = {"sub": "ännchen", "exp": 4_000_000_000}
    assert jwt.decode(sign(claims, KEYS), NEW, algorithms=["HS256"]) == claims
    assert jwt.get_unverified_header(sign(claims, KEYS))["kid"] == "2026-11"
    foreign = jwt.encode(claims, OLD, algorithm="HS256", headers={"kid": "2026-10"})
    assert verify(foreign, KEYS, 0) == claims


def test_every_flipped_bit_is_refused():
    token = sign({"sub": "ann", "exp": 10}, KEYS).encode()
    for place in range(len(token)):
        for bit in range(8):
            forged = bytearray(token)
            forged[place] ^= 1 << bit
            with pytest.raises(InvalidToken):
                verify(forged.decode("latin-1"), KEYS, 0)


def test_every_other_spelling_of_the_last_character_is_refused():
    token = sign({"exp": 10}, KEYS)
    for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=":
        if last != token[-1]:
            with pytest.raises(InvalidToken):
                verify(token[:-1] + last, KEYS, 0)


def test_expiry():
    token = sign({"exp": 10}, KEYS)
    assert verify(token, KEYS, 9)
    for now_s in (10, 11):
        with pytest.raises(InvalidToken, match="expired"):
            verify(token, KEYS, now_s)


@pytest.mark.parametrize("exp", [None, "10", True, [10], 10**400])
def test_exp_is_required_and_a_number(exp):
    with pytest.raises(InvalidToken, match="exp"):
        verify(sign({"exp": exp}, KEYS), KEYS, 0)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "é.é.é",
        "\ud800.a.b",
        "e30.e30.",
        "W10.e30.AAAA",
        "a b.c.d",
        "/w.e30.AA",
    ],
)
def test_malformed(token):
    with pytest.raises(InvalidToken):
        verify(token, KEYS, 0)


@pytest.mark.parametrize("alg", ["none", "None", "HS512", "RS256", "", None, ["HS256"]])
def test_other_algorithms(alg):
    token = sign({"exp": 10}, KEYS)
    header = _part({"alg": alg, "kid": "2026-11"})
    for signature in ("", token.split(".")[2]):
        with pytest.raises(InvalidToken, match="alg"):
            verify(f"{header}.{token.split('.')[1]}.{signature}", KEYS, 0)


@pytest.mark.parametrize("kid", [None, "nope", ["2026-11"], {}])
def test_unknown_kid(kid):
    with pytest.raises(InvalidToken, match="kid"):
        verify(f"{_part({'alg': 'HS256', 'kid': kid})}.e30.AAAA", KEYS, 0)


def test_critical_extension_is_refused():
    with pytest.raises(InvalidToken, match="crit"):
        verify(f"{_part({'alg': 'HS256', 'kid': '2026-11', 'crit': ['b64']})}.e30.AAAA", KEYS, 0)


def test_deep_nesting_is_refused():
    deep = urlsafe_b64encode(b"[" * 2_900).rstrip(b"=").decode()
    with pytest.raises(InvalidToken, match="malformed header"):
        verify(f"{deep}.e30.AAAA", KEYS, 0)


def test_one_character_too_long():
    bare = len(sign({"exp": 10, "x": ""}, KEYS))
    padding = (MAX_TOKEN_CHARS - bare) * 3 // 4
    token = sign({"exp": 10, "x": "x" * padding}, KEYS)
    assert len(token) <= MAX_TOKEN_CHARS and verify(token, KEYS, 0)
    with pytest.raises(InvalidToken, match="too long"):
        sign({"exp": 10, "x": "x" * (padding + 3)}, KEYS)
    with pytest.raises(InvalidToken, match="too long"):
        verify("x" * (MAX_TOKEN_CHARS + 1), KEYS, 0)


def test_rotation():
    token = sign({"exp": 10}, Keys({"2026-10": OLD}, "2026-10"))
    assert verify(token, KEYS, 0)
    with pytest.raises(InvalidToken, match="kid"):
        verify(token, Keys({"2026-11": NEW}, "2026-11"), 0)


def test_keys_are_checked_and_stay_secret():
    with pytest.raises(VitrineError, match="31 bytes"):
        Keys({"a": b"x" * 31}, "a")
    with pytest.raises(VitrineError, match="'b'"):
        Keys({"a": OLD}, "b")
    assert "oooo" not in repr(KEYS)


def test_decision_round_trip():
    claims = verify(sign(DECISION.to_claims(), KEYS), KEYS, 1_999)
    assert Decision.from_claims(claims) == DECISION
    assert "sub" not in claims


def test_a_credential_is_no_decision():
    with pytest.raises(InvalidToken, match="kind"):
        Decision.from_claims({"sub": "ann", "exp": 10})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("propensity", 0),
        ("propensity", 1.01),
        ("propensity", True),
        ("position", -1),
        ("row_version", 1.5),
        ("user_key", None),
        ("item_id", 3),
        ("exp", "soon"),
        ("bundle", None),
    ],
)
def test_decision_fields_are_checked(name, value):
    with pytest.raises(InvalidToken, match=name):
        Decision.from_claims({**DECISION.to_claims(), name: value})
