"""Downloads: whatever a server does, the right file appears whole or not at all, soon, with an honest error."""

import dataclasses
import hashlib
import os
import random
import time
from pathlib import Path

import pytest
from pretend_hosts import BAD, DRIVE_GOOD, DRIVE_MANNERS, GOOD, MODIFIED, Host

from dgmn2cli import zoo
from dgmn2cli.errors import IntegrityError, NetworkError, NonFiniteError, ResourceError
from dgmn2cli.observer import Silent
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo import fetch as fetching
from dgmn2cli.zoo import http, manifest
from dgmn2cli.zoo.bundle import adopt_offered
from dgmn2cli.zoo.fetch import fetch
from dgmn2cli.zoo.http import Limits, follow
from dgmn2cli.zoo.manifest import Source

CONTENT = random.Random(7).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATIENT = Limits(connect=10, read=10, total=30, retries=2, backoff=0.01)
HASTY = Limits(connect=0.3, read=0.2, total=0.7, retries=2, backoff=0.01)
SLACK = 5  # seconds beyond the total limit that a busy machine may take


@pytest.fixture(scope="module")
def host():
    host = Host(CONTENT)
    yield host
    host.stop()


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch):
    """The test's file is small, so an endless one is noticed early."""
    monkeypatch.setattr(manifest, "OVERHEAD", 1_000_000)


@pytest.fixture
def entry(host):
    return entry_at(host.url("good"))


def entry_at(url, **changes):
    source = Source("https", url)
    return dataclasses.replace(zoo.find("setr_pup-tiny"), **{"sources": (source,), "params": 10_000, **changes})


def verify(path):
    """Stands for the structural check: only the right content passes."""
    if path.read_bytes() != CONTENT:
        raise IntegrityError("this is not a checkpoint", where=path, why="another content", faults=["fault"])
    return SHA256


def adopt(entry, file, *, cache, verify):
    (adopted,) = adopt_offered(Path(file), [entry], all_wanted=True, cache=cache, verify_for=lambda entry: verify)
    return adopted


class Watching(Silent):
    """An observer that remembers what it was told."""

    def __init__(self):
        self.notes, self.done, self.total = [], 0, None

    def note(self, message):
        self.notes.append(message)

    def begin(self, task, total=None, *, done=0, unit=""):
        assert unit == "bytes"
        self.done, self.total = done, total

    def advance(self, parts=1, *, done=None, total=None, detail="", left=None):
        self.done = self.done + parts if done is None else done


def part_name(entry, version, process=999999999):
    tag = hashlib.sha256(version.encode()).hexdigest()[:12] if version else "-"
    return f"{stem(entry)}.{tag}.{process}.0badcafe.part"


def stem(entry):
    source = entry.sources[0]
    return f"{entry.key}@{hashlib.sha256(f'{source.type}:{source.location}'.encode()).hexdigest()[:12]}"


def old_part(cache, entry, content, version='"right"'):
    """What a killed download left behind, of the content that the server called `version`."""
    (cache / "parts").mkdir(parents=True, exist_ok=True)
    (cache / "parts" / part_name(entry, version)).write_bytes(content)


def leftovers(cache):
    return [path.name for path in (cache / "parts").iterdir() if path.suffix != ".lock"]


def check_published(cache, entry, fetched):
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.size) == (SHA256, len(CONTENT))
    assert fetched.path == caching.file_path(cache, SHA256)
    assert leftovers(cache) == []
    assert caching.find_record(entry, cache).sha256 == SHA256


def check_nothing_wrong(cache, entry, error, began, limits=HASTY):
    """An honest error: the right exit code, one printable line, no wrong file, nothing that stays for ever."""
    assert time.monotonic() - began < limits.total + SLACK
    assert error.exit_code in (3, 4)
    assert str(error).isprintable()
    assert len(str(error)) < 600
    assert not (cache / "files").exists() or list((cache / "files").iterdir()) == []
    assert caching.find_record(entry, cache) is None
    for name in leftovers(cache):
        assert name.startswith(f"{stem(entry)}.")


STATES = ("fresh", "old part", "stale part")


def prepare(cache, entry, state):
    if state == "old part":
        old_part(cache, entry, CONTENT[:70_000])
    elif state == "stale part":
        old_part(cache, entry, b"\0" * 70_000, '"stale"')


def test_the_pretend_host_has_enough_manners():
    assert len(GOOD) == 26
    assert len(BAD) == 46


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("manner", GOOD)
def test_a_host_that_gives_the_file_in_the_end(tmp_path, host, manner, state):
    entry = entry_at(host.url(manner))
    host.asked.clear()
    prepare(tmp_path, entry, state)
    fetched = fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    check_published(tmp_path, entry, fetched)
    assert (fetched.pin, fetched.cached) == ("new", False)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("manner", BAD)
def test_a_host_that_never_gives_the_file(tmp_path, host, manner, state):
    entry = entry_at(host.url(manner))
    host.asked.clear()
    prepare(tmp_path, entry, state)
    began = time.monotonic()
    with pytest.raises((NetworkError, IntegrityError)) as caught:
        fetch(entry, cache=tmp_path, verify=verify, limits=HASTY)
    check_nothing_wrong(tmp_path, entry, caught.value, began)
    if state != "fresh":
        return
    mirrored = dataclasses.replace(entry, sources=(*entry.sources, Source("https", host.url("good"))))
    if manner in ("slow-body", "slow-headers", "silent", "stall", "endless", "endless-chunks"):
        return  # these use up the time
    check_published(tmp_path, mirrored, fetch(mirrored, cache=tmp_path, verify=verify, limits=PATIENT))


@pytest.mark.parametrize("known", ["pinned", "recorded"])
@pytest.mark.parametrize("manner", ["good", "flipped", "cut", "page", "no-validator", "changed-unheeded"])
def test_a_known_hash_decides(tmp_path, host, manner, known):
    entry = entry_at(host.url(manner), sha256=SHA256 if known == "pinned" else None)
    host.asked.clear()
    if known == "recorded":
        caching.record(entry, tmp_path, sha256=SHA256, size=len(CONTENT), source="earlier")

    def no_need(path):
        raise AssertionError("a known hash needs no structural check")

    if manner in ("flipped", "cut", "page"):
        with pytest.raises((NetworkError, IntegrityError)) as caught:
            fetch(entry, cache=tmp_path, verify=no_need, limits=PATIENT)
        assert leftovers(tmp_path) == []
        if manner == "flipped":
            assert caught.value.exit_code == 3
            assert SHA256 in str(caught.value)
    else:
        fetched = fetch(entry, cache=tmp_path, verify=no_need, limits=PATIENT)
        check_published(tmp_path, entry, fetched)
        assert fetched.pin == known


def test_the_rest_only_is_fetched_when_it_fits(tmp_path, host, entry):
    host.ranges.clear()
    old_part(tmp_path, entry, CONTENT[:150_000])
    check_published(tmp_path, entry, fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT))
    assert host.ranges == ["bytes=150000-"]


def test_a_damaged_beginning_is_noticed_and_fetched_anew(tmp_path, host, entry):
    """The server's tag fits, the bytes on disk do not: continued, found wrong, fetched once more from the start."""
    old_part(tmp_path, entry, b"\0" * 150_000)
    host.asked.clear()
    check_published(tmp_path, entry, fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT))
    assert host.asked["good"] == 2


@pytest.mark.parametrize("name", ["", ".999999999.0badcafe", ".-.999999999.0badcafe"])
def test_a_part_of_a_version_not_known_is_not_continued(tmp_path, host, entry, name):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f"{stem(entry)}{name}.part").write_bytes(CONTENT[:100_000])
    host.ranges.clear()
    check_published(tmp_path, entry, fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT))
    assert host.ranges == []


def test_a_part_in_use_is_left_alone(tmp_path, host, entry):
    with fetching.Part(tmp_path / "parts", stem(entry)) as mine:
        mine.begin("0badcafe0bad")
        mine.append(b"mine")
        elsewhere = mine.path.with_name(mine.path.name.replace(f".{os.getpid()}.", ".999999999."))
        mine.path = mine.path.rename(elsewhere)  # as another container's process is called here
        fetched = fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
        assert fetched.path.read_bytes() == CONTENT
        assert mine.path.read_bytes() == b"mine"
    assert leftovers(tmp_path) == []


def test_parts_of_other_entries_are_swept_after_a_week(tmp_path, entry):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, age in (("fpn-tiny@0.1.2.part", 8), ("fpn-small@0.1.2.part", 6)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age * 86400,) * 2)
    fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    assert leftovers(tmp_path) == ["fpn-small@0.1.2.part"]


def test_the_second_time_it_is_there(tmp_path, host, entry):
    fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    host.asked.clear()
    watching = Watching()
    again = fetch(entry, cache=tmp_path, verify=verify, offline=True, observer=watching)
    assert (again.cached, again.pin, again.sha256) == (True, "recorded", SHA256)
    assert watching.done == watching.total == len(CONTENT)
    assert not host.asked
    fetch(entry, cache=tmp_path, verify=verify, force=True)
    assert host.asked["good"] == 1


def test_a_damaged_cached_file_is_replaced(tmp_path, entry):
    path = fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT).path
    for damage in (b"", CONTENT[:-1], CONTENT[:-1] + b"\0"):
        path.write_bytes(damage)
        watching = Watching()
        again = fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT, observer=watching)
        assert again.path.read_bytes() == CONTENT
        assert len(watching.notes) == 1
        assert watching.done == watching.total == len(CONTENT)
    path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="the cached file is damaged"):
        fetch(entry, cache=tmp_path, verify=verify, offline=True)


def test_a_replaced_file_at_the_source_is_not_taken_silently(tmp_path, host, entry):
    caching.record(entry, tmp_path, sha256="1" * 64, size=5, source=entry.sources[0].address)
    with pytest.raises(IntegrityError, match=f"{SHA256}, wanted {'1' * 64}") as caught:
        fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    assert str(caching.record_path(entry, tmp_path)) in str(caught.value)
    caching.record_path(entry, tmp_path).unlink()
    assert fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT).pin == "new"


def test_a_stated_size_is_checked(tmp_path, host):
    for size in (len(CONTENT) - 1, len(CONTENT) + 1):
        with pytest.raises((IntegrityError, NetworkError)):
            fetch(entry_at(host.url("good"), size=size), cache=tmp_path, verify=verify, limits=PATIENT)
    assert leftovers(tmp_path) == []
    assert fetch(entry_at(host.url("good"), size=len(CONTENT)), cache=tmp_path, verify=verify).size == len(CONTENT)


def test_sources_are_tried_in_order(tmp_path, host):
    (tmp_path / "wrong").write_bytes(CONTENT + b"x")
    sources = (
        Source("https", host.url("404")), Source("file", str(tmp_path / "none")), Source("file", str(tmp_path)),
        Source("file", str(tmp_path / "wrong")), Source("https", host.url("good")),
    )  # fmt: skip
    entry = entry_at("", sources=sources)
    watching = Watching()
    fetched = fetch(entry, cache=tmp_path / "cache", verify=verify, limits=PATIENT, observer=watching)
    assert fetched.source == host.url("good")
    assert len(watching.notes) == 4
    with pytest.raises(IntegrityError) as caught:
        fetch(entry, cache=tmp_path / "other", verify=verify, sources=sources[:4], limits=PATIENT)
    assert len(caught.value.faults) == 4
    assert leftovers(tmp_path / "other") == []


def test_offline_uses_files_only(tmp_path, host, entry):
    (tmp_path / "file").write_bytes(CONTENT)
    host.asked.clear()
    with pytest.raises(NetworkError, match="switched off") as caught:
        fetch(entry, cache=tmp_path / "cache", verify=verify, offline=True)
    assert "--from FILE" in str(caught.value)
    both = dataclasses.replace(entry, sources=(*entry.sources, Source("file", str(tmp_path / "file"))))
    assert fetch(both, cache=tmp_path / "cache", verify=verify, offline=True).size == len(CONTENT)
    assert not host.asked


def test_not_finite_weights_keep_their_exit_code(tmp_path, entry):
    def not_finite(path):
        raise NonFiniteError("the checkpoint holds NaN or infinite weights", where=path, why="1 of 5 tensors")

    with pytest.raises(NonFiniteError, match=r"holds NaN.*setr_pup-tiny from http.*1 of 5"):
        fetch(entry, cache=tmp_path, verify=not_finite, limits=PATIENT)
    assert leftovers(tmp_path) == []


def test_adopting_a_file(tmp_path, entry):
    good, wrong = tmp_path / "some name.bin", tmp_path / "wrong"
    good.write_bytes(CONTENT)
    wrong.write_bytes(CONTENT[:-1])
    cache = tmp_path / "cache"
    for bad, kind in ((wrong, IntegrityError), ("/dev/zero", IntegrityError), (tmp_path / "none", ResourceError)):
        with pytest.raises(kind):
            adopt(entry, bad, cache=cache, verify=verify)
    adopted = adopt(entry, good, cache=cache, verify=verify)
    check_published(cache, entry, adopted)
    assert good.read_bytes() == CONTENT
    assert fetch(entry, cache=cache, verify=verify, offline=True).source == str(good)
    with pytest.raises(IntegrityError, match=f"wanted {SHA256}"):
        adopt(entry, wrong, cache=cache, verify=lambda path: None)


def test_a_link_where_the_file_goes_is_replaced_not_followed(tmp_path, entry):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache = tmp_path / "cache"
    (cache / "files").mkdir(parents=True)
    caching.file_path(cache, SHA256).symlink_to(victim)
    check_published(cache, entry, fetch(entry, cache=cache, verify=verify, limits=PATIENT))
    assert not caching.file_path(cache, SHA256).is_symlink()
    assert victim.read_bytes() == b"precious"


def test_a_folder_where_the_file_goes_is_an_error(tmp_path, entry):
    caching.file_path(tmp_path, SHA256).mkdir(parents=True)
    with pytest.raises(ResourceError):
        fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("obstacle", ["cache", "parts", "files", "index"])
def test_a_file_where_a_folder_goes_is_an_error(tmp_path, entry, obstacle):
    cache = tmp_path / "cache"
    place = cache if obstacle == "cache" else cache / obstacle
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"mine")
    with pytest.raises(ResourceError):
        fetch(entry, cache=cache, verify=verify, limits=PATIENT)
    assert place.read_bytes() == b"mine"


def test_a_refused_block_leaves_nothing(tmp_path, entry, monkeypatch):
    """The disk fills up in the middle: exit 5, and the half file is gone."""
    real = fetching.Part.append

    def full(self, block):
        if self.size > 50_000:
            os.dup2(os.open("/dev/full", os.O_WRONLY), self._file.fileno())
        real(self, block)

    monkeypatch.setattr(fetching.Part, "append", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    assert leftovers(tmp_path) == []


def test_too_little_space_is_said_before_the_download(tmp_path, entry, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 5})())
    with pytest.raises(ResourceError, match=r"0\.2 MB needed, 0\.0 MB free"):
        fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    assert leftovers(tmp_path) == []


def test_no_server_at_all(tmp_path):
    for url, said in (("http://127.0.0.1:1/x", "connection refused"), ("https://nosuch.invalid/x", "")):
        with pytest.raises(NetworkError) as caught:
            fetch(entry_at(url), cache=tmp_path, verify=verify, limits=PATIENT)
        assert said in str(caught.value)
        assert caught.value.exit_code == 4


def test_a_redirect_needs_no_second_attempt(tmp_path, host):
    """The host closes each connection after its answer, as servers may: a used one must not be used again."""
    once = dataclasses.replace(PATIENT, retries=0)
    for number in range(30):
        entry = entry_at(host.url("redirect-relative"))
        fetch(entry, cache=tmp_path / str(number), verify=verify, limits=once)


def test_a_redirect_is_followed_without_its_body(tmp_path, host):
    entry = entry_at(host.url("redirect-endless"))
    check_published(tmp_path, entry, fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT))


def test_https_is_never_left():
    for target in (
        "http://example.org/",
        "ftp://example.org/",
        "http://127.0.0.1/",
        "//user@example.org/",
        "file:///x",
    ):
        with pytest.raises(NetworkError, match="not followed"):
            follow("https://example.org/x?token=secret", target)
    assert follow("https://example.org/a/b", "../c") == "https://example.org/c"
    assert follow("https://example.org/a", "https://other.example/b") == "https://other.example/b"
    assert follow("http://127.0.0.1:5/a", "https://example.org/b") == "https://example.org/b"


def test_messages_hide_tokens(tmp_path, host):
    with pytest.raises(NetworkError) as caught:
        fetch(entry_at(host.url("404?token=secret")), cache=tmp_path, verify=verify, limits=PATIENT)
    assert "secret" not in str(caught.value)
    assert "status 404" in str(caught.value)
    with pytest.raises(NetworkError, match="holds a user name or password") as caught:
        fetch(entry_at(host.url("redirect-password")), cache=tmp_path, verify=verify, limits=PATIENT)
    assert "secret" not in str(caught.value)


@pytest.fixture
def drive_host(host, monkeypatch):
    monkeypatch.setattr(http, "DRIVE", host.base + "/uc?export=download&id={id}")
    host.asked.clear()
    host.ranges.clear()
    return host


def on_drive(manner, **changes):
    return entry_at("", sources=(Source("gdrive", manner.ljust(20, "_")),), **changes)


@pytest.mark.parametrize("state", ["fresh", "old part"])
@pytest.mark.parametrize("manner", DRIVE_GOOD)
def test_drive_gives_the_file(tmp_path, drive_host, manner, state):
    entry = on_drive(manner)
    if state == "old part":
        old_part(tmp_path, entry, CONTENT[:120_000], MODIFIED)
    fetched = fetch(entry, cache=tmp_path, verify=verify, limits=PATIENT)
    check_published(tmp_path, entry, fetched)
    assert drive_host.ranges == (["bytes=120000-"] if state == "old part" else [])
    assert fetched.source.startswith("https://drive.google.com/file/d/")


DRIVE_WORDS = {
    "quota": "it says: Too many users have viewed or downloaded this file",
    "login": "its page shows no way to the file, which may not be public",
    "folder": "its page shows no way to the file",
    "other-error": "it says: This file is \\x1b[31mtoo strange.",
    "missing": "status 404: ",
    "denied": "status 403: ",
    "form-other-action": "'ftp://x/y' has the scheme 'ftp'",
    "form-elsewhere": "'http://192.0.2.1/y' is plain http",
    "form-broken": "its page shows no way to the file",
    "form-again": "one page leads to another",
    "empty-page": "its page shows no way to the file",
    "endless-page": "its page shows no way to the file",
}


@pytest.mark.parametrize("manner", [name for name in DRIVE_MANNERS if name not in DRIVE_GOOD])
def test_drive_does_not_give_the_file(tmp_path, drive_host, manner):
    assert len(DRIVE_WORDS) == len(DRIVE_MANNERS) - 2 == 12
    entry = on_drive(manner)
    limits = dataclasses.replace(HASTY, total=10)  # importing gdown takes a while
    began = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        fetch(entry, cache=tmp_path, verify=verify, limits=limits)
    check_nothing_wrong(tmp_path, entry, caught.value, began, limits)
    assert DRIVE_WORDS[manner] in str(caught.value)
