"""Negative controls: against a deliberately weakened fetch the same checks must fail, so they can see."""

import contextlib
import dataclasses
import hashlib
import random

import pytest
from pretend_hosts import Host

from dgmn2cli import zoo
from dgmn2cli.errors import IntegrityError, NetworkError
from dgmn2cli.files import hash_file
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo import fetch as fetching
from dgmn2cli.zoo import http, manifest
from dgmn2cli.zoo.manifest import Source

CONTENT = random.Random(9).randbytes(200_000)
LIMITS = http.Limits(connect=10, read=10, total=30, retries=1, backoff=0.01)


@pytest.fixture(scope="module")
def host():
    host = Host(CONTENT)
    yield host
    host.stop()


def publishes_only_the_right_file(host, manner, cache):
    """The invariant of all download tests, as a yes or no."""
    entry = dataclasses.replace(zoo.find("setr_pup-tiny"), params=10_000, sources=(Source("https", host.url(manner)),))
    host.asked.clear()

    def verify(path):
        if path.read_bytes() != CONTENT:
            raise IntegrityError("this is not a checkpoint", where=path)
        return hash_file(path)

    with contextlib.suppress(IntegrityError, NetworkError):
        fetching.fetch(entry, cache=cache, verify=verify, limits=LIMITS)
    files = cache / "files"
    return all(file.read_bytes() == CONTENT for file in files.iterdir()) if files.exists() else True


@pytest.fixture
def unchecked(monkeypatch):
    """Takes away the check of the content, whatever it is."""
    finish = fetching.Download._finish

    def without_check(download, source, part, *rest):
        return finish(dataclasses.replace(download, verify=hash_file), source, part)

    monkeypatch.setattr(fetching.Download, "_finish", without_check)


MANNERS = ("flipped", "cut", "page-as-bytes", "empty", "lfs-pointer", "changed-unheeded", "range-wrong-start")


@pytest.mark.parametrize("manner", MANNERS)
def test_the_build_as_it_is_passes(host, tmp_path, manner):
    assert publishes_only_the_right_file(host, manner, tmp_path)


@pytest.mark.parametrize("manner", ["flipped", "cut", "empty", "lfs-pointer"])
@pytest.mark.usefixtures("unchecked")
def test_without_the_structural_check_it_is_seen(host, tmp_path, manner):
    assert not publishes_only_the_right_file(host, manner, tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_part_of_another_content_is_seen_when_joined_unchecked(host, tmp_path, monkeypatch):
    """No comparison of tags and no structural check: old bytes and new ones make one file, and the check sees it."""
    source = hashlib.sha256(f"https:{host.url('changed-unheeded')}".encode()).hexdigest()[:12]
    old = fetching.Part(tmp_path / "parts", f"setr_pup-tiny@{source}")
    old.begin("0123456789ab")
    old.append(b"\0" * 50_000)
    old.__exit__(None, NetworkError("the connection is cut"), None)
    monkeypatch.setattr(fetching, "version_tag", lambda response: "0123456789ab")
    assert not publishes_only_the_right_file(host, "changed-unheeded", tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_short_body_is_seen_when_lengths_are_not_compared(host, tmp_path, monkeypatch):
    def half(self, response, part):
        part.begin()
        part.append(response.raw.read(1000, decode_content=False))

    monkeypatch.setattr(fetching.Download, "_take", half)
    assert not publishes_only_the_right_file(host, "good", tmp_path)


def test_a_damaged_cached_file_is_seen_when_not_hashed(host, tmp_path, monkeypatch):
    assert publishes_only_the_right_file(host, "good", tmp_path)
    (file,) = (tmp_path / "files").iterdir()
    file.write_bytes(CONTENT[:-1])
    monkeypatch.setattr(caching, "hash_file", lambda path, advance=None: path.stem)
    assert not publishes_only_the_right_file(host, "good", tmp_path)
    monkeypatch.undo()
    assert publishes_only_the_right_file(host, "good", tmp_path)


def test_a_redirect_to_another_scheme_is_seen_when_followed(host, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(http, "url_fault", lambda url: "")
    monkeypatch.setattr(http.Client, "send", _recording(http.Client.send, asked))
    assert publishes_only_the_right_file(host, "redirect-plain-host", tmp_path)
    assert any("192.0.2.1" in url for url in asked), "the weakened build asks where it must not"
    monkeypatch.undo()
    asked.clear()
    monkeypatch.setattr(http.Client, "send", _recording(http.Client.send, asked))
    publishes_only_the_right_file(host, "redirect-plain-host", tmp_path)
    assert not any("192.0.2.1" in url for url in asked)


def _recording(real, asked):
    def send(client, request, **settings):
        asked.append(request.url)
        if "192.0.2.1" in request.url:
            raise NetworkError("not asked in a test")
        return real(client, request, **settings)

    return send


def test_an_oversized_body_is_seen_without_the_limit(host, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "OVERHEAD", 10_000)
    monkeypatch.setattr(manifest, "BYTES_PER_PARAM", 1)
    entry = dataclasses.replace(
        zoo.find("setr_pup-tiny"), params=1000, sources=(Source("https", host.url("no-length")),)
    )
    with pytest.raises(IntegrityError, match="too large"):
        fetching.fetch(entry, cache=tmp_path, verify=hash_file, limits=LIMITS)
    monkeypatch.setattr(manifest, "OVERHEAD", 10**12)
    assert fetching.fetch(entry, cache=tmp_path, verify=hash_file, limits=LIMITS).size == len(CONTENT)


def test_a_web_page_is_seen_without_the_page_check(host, tmp_path, monkeypatch):
    entry = dataclasses.replace(zoo.find("setr_pup-tiny"), sources=(Source("https", host.url("page-as-bytes")),))
    with pytest.raises(NetworkError, match="web page"):
        fetching.fetch(entry, cache=tmp_path, verify=hash_file, limits=LIMITS)
    monkeypatch.setattr(fetching, "PAGE", b"no page begins like this")
    assert fetching.fetch(entry, cache=tmp_path, verify=hash_file, limits=LIMITS).size < 100
