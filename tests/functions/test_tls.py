"""Nobody is spoken with who cannot prove to be the service."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from functions.aws.clients import DynamoDB, Session
from functions.aws.connection import Connection, Target, trust
from functions.aws.errors import NoAnswer, TimedOut
from functions.aws.transport import Limits, Transport
from tests.functions.scripted import Scripted, answer


def certificate(folder: Path, *names: x509.GeneralName, days: int = 1) -> tuple[Path, ssl.SSLContext]:
    """A server's certificate, signed by itself, for these names: its file, and what a server needs of it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a service")])
    made = (
        x509.CertificateBuilder(own, own, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    known, private = folder / "certificate.pem", folder / "key.pem"
    known.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(known, private)
    return known, context


def asked(server: Scripted, known: Path | None, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    if known is not None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(known))
    trust.cache_clear()
    session = Session()
    client = DynamoDB(Transport("dynamodb", Limits(1, 5, 1), session.source, session.clock))
    try:
        return [client.get_item(TableName="rows", Key={}) for _ in range(2)]
    finally:
        trust.cache_clear()


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def test_who_is_known_is_spoken_with_over_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, context = certificate(tmp_path, LOOPBACK)
    with Scripted(answer(200, b"{}"), answer(200, b"{}"), tls=context) as server:
        assert asked(server, known, monkeypatch) == [{}, {}]
        assert (len(server.requests), server.connections) == (2, 1)


@pytest.mark.parametrize("why", ["nobody vouches for it", "another name", "its time is over"])
def test_who_is_not_is_told_nothing(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = x509.DNSName("dynamodb.eu-west-3.amazonaws.com") if why == "another name" else LOOPBACK
    known, context = certificate(tmp_path, name, days=-1 if why == "its time is over" else 1)
    with Scripted(answer(200, b"{}"), tls=context) as server:
        with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
            asked(server, None if why == "nobody vouches for it" else known, monkeypatch)
        assert server.requests == []


def test_trust_is_what_python_recommends() -> None:
    trust.cache_clear()
    assert trust().verify_mode == ssl.CERT_REQUIRED and trust().check_hostname
    assert trust().minimum_version >= ssl.TLSVersion.TLSv1_2
    assert trust() is trust()


def test_a_handshake_that_does_not_come_is_a_timeout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Scripted() as server:  # speaks no TLS, and waits
        server.url = server.url.replace("http:", "https:")
        with pytest.raises(NoAnswer, match="connecting"):
            asked(server, None, monkeypatch)


def test_what_has_come_by_the_end_of_its_time_is_taken_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, context = certificate(tmp_path, LOOPBACK)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(known))
    trust.cache_clear()
    with Scripted(answer(200, b"all of it")[:-3], tls=context) as server:
        connection = Connection(Target.of(server.url), 1, 5)
        begun = connection.ask("GET", "/", {})
        frozen = SimpleNamespace(monotonic=lambda: time.monotonic() + 600)
        monkeypatch.setattr("functions.aws.connection.time", frozen)
        assert begun.read(6) == b"all of"
        with pytest.raises(TimedOut, match="not all of an answer in 5 s"):
            begun.read()
        connection.close()
    trust.cache_clear()
