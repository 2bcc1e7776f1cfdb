"""Downloads over https: an unknown certificate is refused, plain http is never fallen back to, the deadline holds."""

import dataclasses
import hashlib
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from pretend_hosts import Host

from dgmn2cli import zoo
from dgmn2cli.errors import IntegrityError, NetworkError, ResourceError
from dgmn2cli.zoo.fetch import fetch
from dgmn2cli.zoo.http import Limits
from dgmn2cli.zoo.manifest import Source

CONTENT = random.Random(3).randbytes(100_000)
PATIENT = Limits(connect=10, read=10, total=30, retries=0, backoff=0.01)
HASTY = Limits(connect=1, read=0.5, total=1, retries=0, backoff=0.01)


def verify(path):
    if path.read_bytes() != CONTENT:
        raise IntegrityError("this is not a checkpoint", where=path, why="another content")
    return hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this test run for the loopback device, key included."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    command = [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", folder / "key.pem", "-out", folder / "certificate.pem",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def plain():
    host = Host(CONTENT)
    yield host
    host.stop()


@pytest.fixture(scope="module")
def host(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    host = Host(CONTENT)
    host.socket = context.wrap_socket(host.socket, server_side=True, do_handshake_on_connect=False)
    yield host
    host.stop()


@pytest.fixture
def trusted(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "certificate.pem"))


def entry_at(url):
    return dataclasses.replace(zoo.find("setr_pup-tiny"), sources=(Source("https", url),), params=10_000)


def secure(host, manner):
    return host.url(manner).replace("http://", "https://")


def test_a_trusted_host_gives_the_file(tmp_path, host, trusted):
    fetched = fetch(entry_at(secure(host, "good")), cache=tmp_path, verify=verify, limits=PATIENT)
    assert fetched.path.read_bytes() == CONTENT


def test_an_unknown_certificate_is_refused(tmp_path, host):
    with pytest.raises(NetworkError, match="the server cannot be trusted"):
        fetch(entry_at(secure(host, "good")), cache=tmp_path, verify=verify, limits=PATIENT)
    assert list((tmp_path / "parts").glob("*.part")) == []


def test_a_redirect_to_plain_http_is_not_followed(tmp_path, host, plain, trusted, monkeypatch):
    monkeypatch.setitem(
        __import__("pretend_hosts").MANNERS, "downgrade",
        lambda handler: handler.send(b"", 302, Location=plain.url("good")),
    )  # fmt: skip
    plain.asked.clear()
    with pytest.raises(NetworkError, match="is plain http"):
        fetch(entry_at(secure(host, "downgrade")), cache=tmp_path, verify=verify, limits=PATIENT)
    assert not plain.asked


@pytest.mark.parametrize("manner", ["slow-body", "slow-headers", "silent", "stall", "endless"])
def test_the_deadline_holds(tmp_path, host, trusted, manner):
    began = time.monotonic()
    with pytest.raises((NetworkError, IntegrityError)):
        fetch(entry_at(secure(host, manner)), cache=tmp_path, verify=verify, limits=HASTY)
    assert time.monotonic() - began < HASTY.total + 5


def test_a_host_that_never_shakes_hands(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/x"
        began = time.monotonic()
        with pytest.raises(NetworkError):
            fetch(entry_at(url), cache=tmp_path, verify=verify, limits=HASTY)
    assert time.monotonic() - began < HASTY.total + 5
    assert threading.active_count() < 50


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_named_before_anything_is_asked(variable, host, tmp_path, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    missing = str(tmp_path / "Company-CA" / "bundle.pem")
    monkeypatch.setenv(variable, missing)
    host.asked.clear()
    with pytest.raises(ResourceError) as caught:
        fetch(entry_at(secure(host, "good")), cache=tmp_path / "cache", verify=verify, limits=PATIENT)
    assert (str(caught.value.where), caught.value.exit_code) == (missing, 5)
    assert caught.value.why.startswith(variable)
    assert not host.asked
