"""The cache: where it is, which content is which entry, and that nothing in it is believed unseen."""

import dataclasses
import hashlib
import json
import os
import sys

import pytest

from dgmn2cli import zoo
from dgmn2cli.errors import ResourceError
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo.manifest import Source

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def entry():
    return zoo.find("setr_pup-tiny")


def put(cache, content=CONTENT):
    path = caching.file_path(cache, hashlib.sha256(content).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_folder_is_the_named_one_then_the_environments_then_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path / "env"))
    assert zoo.cache_dir(tmp_path / "named") == tmp_path / "named"
    assert zoo.cache_dir() == tmp_path / "env"
    monkeypatch.setenv("DGMN2_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_dir() == tmp_path / "xdg" / "dgmn2"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the place differs by platform")
def test_without_xdg_it_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DGMN2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.cache_dir() == tmp_path / ".cache" / "dgmn2"
    monkeypatch.delenv("HOME")
    assert zoo.cache_dir().is_absolute()
    monkeypatch.setenv("HOME", "")
    with pytest.raises(ResourceError, match="no home folder"):
        zoo.cache_dir()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ResourceError, match="DGMN2_CACHE"):
        zoo.cache_dir()


def test_a_user_without_a_home_has_nothing_cached(monkeypatch, entry):
    for name in ("DGMN2_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    assert zoo.find_cache() is None
    assert zoo.locate(entry, None) is None
    assert zoo.pin_state(entry, None) == ("pinned" if entry.sha256 else "unknown")


def test_an_empty_cache_knows_nothing(tmp_path, entry):
    assert zoo.locate(entry, tmp_path / "none") is None
    assert zoo.pin_state(entry, tmp_path / "none") == "unknown"
    assert not (tmp_path / "none").exists()


def test_a_recorded_file_is_found(tmp_path, entry):
    path = put(tmp_path)
    assert zoo.locate(entry, tmp_path) is None, "content without a record belongs to no entry"
    caching.record(entry, tmp_path, sha256=SHA256, size=len(CONTENT), source="here")
    found = zoo.locate(entry, tmp_path)
    assert found == zoo.CachedFile(path, SHA256, len(CONTENT), "recorded", "here")
    assert zoo.pin_state(entry, tmp_path) == "recorded"
    assert zoo.locate(zoo.find("setr_pup-small"), tmp_path) is None


def test_a_pinned_file_needs_no_record(tmp_path, entry):
    pinned = dataclasses.replace(entry, sha256=SHA256)
    assert zoo.locate(pinned, tmp_path) is None
    put(tmp_path)
    assert zoo.locate(pinned, tmp_path).pin == "pinned"


def test_the_manifests_hash_overrules_a_record(tmp_path, entry):
    put(tmp_path)
    caching.record(entry, tmp_path, sha256=SHA256, size=len(CONTENT), source="here")
    other = dataclasses.replace(entry, sha256="0" * 64)
    assert caching.expected_sha256(other, tmp_path) == "0" * 64
    assert zoo.locate(other, tmp_path) is None


MIRROR = Source("https", "https://example.org/model.pth")


def test_a_record_belongs_to_the_source_it_came_from(tmp_path, entry):
    put(tmp_path)
    address = entry.sources[0].address
    caching.record(entry, tmp_path, sha256=SHA256, size=len(CONTENT), source=address)
    assert zoo.locate(dataclasses.replace(entry, sources=(MIRROR,)), tmp_path) is None
    assert zoo.locate(dataclasses.replace(entry, sources=(MIRROR, *entry.sources)), tmp_path).source == address
    for stated in ("0" * 64, SHA256):
        assert caching.find_record(dataclasses.replace(entry, sha256=stated), tmp_path) is None


@pytest.mark.parametrize("source", [MIRROR.address, "/home/me/adopted.pth", "/home/me/bundle.tar: setr_pup-tiny"])
@pytest.mark.parametrize("stated", [None, SHA256])
def test_what_another_manifest_took_is_not_the_published_file(tmp_path, entry, source, stated):
    """Its entry has the same key and lists the published source, too; the file came from elsewhere."""
    put(tmp_path)
    other = dataclasses.replace(entry, sources=(*entry.sources, MIRROR), sha256=stated)
    caching.record(other, tmp_path, sha256=SHA256, size=len(CONTENT), source=source)
    assert zoo.locate(other, tmp_path) is not None
    assert zoo.locate(entry, tmp_path) is None
    assert zoo.pin_state(entry, tmp_path) == "unknown"
    caching.record(entry, tmp_path, sha256="1" * 64, size=1, source="/home/me/mine.pth")
    assert caching.expected_sha256(other, tmp_path) == SHA256
    assert caching.expected_sha256(entry, tmp_path) == "1" * 64


def test_what_was_adopted_as_another_network_is_no_record(tmp_path, entry):
    put(tmp_path)
    other = dataclasses.replace(entry, config="setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes")
    caching.record(other, tmp_path, sha256=SHA256, size=len(CONTENT), source="/home/me/adopted.pth")
    assert zoo.locate(other, tmp_path) is not None
    assert zoo.locate(entry, tmp_path) is None


def test_a_hash_that_another_manifest_states_is_no_record(tmp_path, entry):
    """The same sources, but the content was verified by a hash that only the other manifest states."""
    put(tmp_path)
    other = dataclasses.replace(entry, sha256=SHA256)
    for source in ("/home/me/adopted.pth", entry.sources[0].address):
        caching.record(other, tmp_path, sha256=SHA256, size=len(CONTENT), source=source)
        assert caching.find_record(other, tmp_path).sha256 == SHA256
        assert caching.find_record(entry, tmp_path) is None


def test_the_record_of_what_was_verified_first_counts(tmp_path, entry):
    """A mirror that another manifest lists, too, must not change what is known here."""
    both = dataclasses.replace(entry, sources=(*entry.sources, MIRROR))
    caching.record(both, tmp_path, sha256=SHA256, size=1, source=MIRROR.address)
    caching.record(entry, tmp_path, sha256="1" * 64, size=1, source=entry.sources[0].address)
    caching.record(both, tmp_path, sha256=SHA256, size=1, source=MIRROR.address)
    assert caching.expected_sha256(both, tmp_path) == SHA256
    assert caching.expected_sha256(entry, tmp_path) == "1" * 64


def test_a_new_record_from_the_same_source_replaces_the_old(tmp_path, entry):
    caching.record(entry, tmp_path, sha256="1" * 64, size=1, source="old")
    path = caching.record_path(entry, tmp_path)
    caching.record(entry, tmp_path, sha256=SHA256, size=1, source="new")
    assert caching.record_path(entry, tmp_path) == path
    assert len(list((tmp_path / "index").iterdir())) == 1
    assert caching.find_record(entry, tmp_path).source == "new"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"key": "setr_pup-tiny"}',
        lambda note: {**note, "sha256": "../../../etc/passwd"},
        lambda note: {**note, "sha256": "A" * 64},
        lambda note: {**note, "sources": 7},
        lambda note: {**note, "size": "many"},
        lambda note: {**note, "key": "fpn-tiny"},
    ],
)
def test_a_damaged_record_is_no_record(tmp_path, entry, damage):
    caching.record(entry, tmp_path, sha256=SHA256, size=1, source="here")
    path = caching.record_path(entry, tmp_path)
    path.write_bytes(json.dumps(damage(json.loads(path.read_text()))).encode() if callable(damage) else damage)
    assert caching.find_record(entry, tmp_path) is None


def test_what_is_no_file_is_not_found(tmp_path, entry):
    pinned = dataclasses.replace(entry, sha256=SHA256)
    path = caching.file_path(tmp_path, SHA256)
    path.mkdir(parents=True)
    assert zoo.locate(pinned, tmp_path) is None
    path.rmdir()
    os.mkfifo(path)
    assert zoo.locate(pinned, tmp_path) is None
