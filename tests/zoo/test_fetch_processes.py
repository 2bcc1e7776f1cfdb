"""Downloads by real processes: killed at any moment, many at once, on a full disk, on a read-only cache."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mounts import in_own_mounts
from pretend_hosts import Host

import dgmn2cli

CONTENT = random.Random(7).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(dgmn2cli.__file__).parents[1]
FETCH = """
import dataclasses, hashlib, sys
from pathlib import Path
from dgmn2cli import zoo
from dgmn2cli.cli.boundary import guarded
from dgmn2cli.errors import IntegrityError
from dgmn2cli.zoo.fetch import fetch
from dgmn2cli.zoo.http import Limits
from dgmn2cli.zoo.manifest import Source
url, cache, wanted = sys.argv[1:]
def verify(path):
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise IntegrityError("this is not a checkpoint", where=path)
    return wanted
entry = dataclasses.replace(zoo.find("setr_pup-tiny"), sources=(Source("https", url),))
def run():
    limits = Limits(connect=10, read=10, total=60, retries=2, backoff=0.01)
    done = fetch(entry, cache=Path(cache), verify=verify, limits=limits)
    print(done.path, done.cached)
sys.exit(guarded(run))
"""


@pytest.fixture
def host():
    host = Host(CONTENT)
    yield host
    host.stop()


def command(url, cache):
    return [sys.executable, "-c", FETCH, url, str(cache), SHA256]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start(url, cache):
    pipe = subprocess.PIPE
    return subprocess.Popen(command(url, cache), stdout=pipe, stderr=pipe, text=True, env=environment())


def check_only_good_files(cache):
    """Invariant at every moment: what is published is whole, whatever happened before."""
    for path in (cache / "files").glob("*") if (cache / "files").exists() else ():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem == SHA256
    for path in (cache / "index").glob("*.json") if (cache / "index").exists() else ():
        assert json.loads(path.read_text())["sha256"] == SHA256


def leftovers(cache):
    return [path.name for path in (cache / "parts").iterdir() if path.suffix != ".lock"]


def wait_for_bytes(cache, process):
    """Until the download has begun to write."""
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        if any(path.stat().st_size for path in (cache / "parts").glob("*.part")):
            return
        time.sleep(0.005)


def kill_then_finish(host, cache, pause):
    process = start(host.url("lingering"), cache)
    wait_for_bytes(cache, process)
    time.sleep(pause)
    process.kill()
    process.communicate(timeout=20)
    check_only_good_files(cache)
    done = subprocess.run(
        command(host.url("lingering"), cache), capture_output=True, text=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_only_good_files(cache)
    assert [path.stem for path in (cache / "files").iterdir()] == [SHA256]
    assert leftovers(cache) == []
    return process.returncode


def test_killed_in_the_middle_the_next_run_goes_on(tmp_path, host):
    assert kill_then_finish(host, tmp_path, 0.4) == -signal.SIGKILL
    assert len(host.ranges) == 1
    assert int(host.ranges[0].removeprefix("bytes=").removesuffix("-")) > 0


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, host):
    rng = random.Random(11)
    killed = 0
    for number in range(100):
        killed += kill_then_finish(host, tmp_path / str(number), rng.uniform(0, 1.3)) == -signal.SIGKILL
    assert killed >= 50


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_the_part_is_kept_and_it_says_so(tmp_path, host, number, code):
    process = start(host.url("lingering"), tmp_path)
    wait_for_bytes(tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert len([name for name in leftovers(tmp_path) if name.endswith(".part")]) == 1
    check_only_good_files(tmp_path)


def test_eight_processes_at_once_fetch_one_file_once(tmp_path, host):
    processes = [start(host.url("lingering"), tmp_path) for _ in range(8)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert len({out.split()[0] for out, _ in outputs}) == 1
    assert sorted(out.split()[1] for out, _ in outputs) == ["False"] + ["True"] * 7
    assert host.asked["lingering"] == 1
    check_only_good_files(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_killed_one_among_many_holds_nobody_up(tmp_path, host):
    first = start(host.url("lingering"), tmp_path)
    wait_for_bytes(tmp_path, first)
    others = [start(host.url("lingering"), tmp_path) for _ in range(2)]
    time.sleep(0.3)
    first.kill()
    first.communicate(timeout=20)
    for process in others:
        process.communicate(timeout=60)
        assert process.returncode == 0
    check_only_good_files(tmp_path)
    assert leftovers(tmp_path) == []


def without_locks(url, cache):
    """The same, where the file system has no locks: correctness must not need them."""
    broken = "import fcntl\ndef flock(*_): raise OSError(37, 'No locks available')\nfcntl.flock = flock\n"
    return [sys.executable, "-c", broken + FETCH, url, str(cache), SHA256]


def test_without_locks_they_do_not_disturb_each_other(tmp_path, host):
    pipe = subprocess.PIPE
    line = without_locks(host.url("lingering"), tmp_path)
    processes = [subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment()) for _ in range(4)]
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    check_only_good_files(tmp_path)


def in_shell(url, cache):
    return f"{sys.executable} -c '{FETCH}' {url} {cache} {SHA256}"


@pytest.mark.parametrize("manner", ["good", "no-length"])
def test_a_full_disk_is_exit_5_and_leaves_no_part(tmp_path, host, manner):
    script = f"""mount -t tmpfs -o size=100k none {tmp_path}
        {in_shell(host.url(manner), tmp_path / "cache")} && code=0 || code=$?
        echo code=$code; find {tmp_path} -type f ! -name '*.lock'"""
    done = in_own_mounts(script, env=environment())
    assert done.stdout == "code=5\n"
    words = "not enough disk space" if manner == "good" else "No space left on device"
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_full_disk_leaves_the_old_file(tmp_path, host):
    once = in_shell(host.url("good"), tmp_path / "cache")
    script = f"""mount -t tmpfs -o size=500k none {tmp_path}
        {once} >/dev/null
        head -c 200k /dev/zero > {tmp_path}/other
        {once.replace("fetch(entry,", "fetch(entry, force=True,")} || echo code=$?
        sha256sum {tmp_path}/cache/files/* | cut -c1-64"""
    done = in_own_mounts(script, env=environment())
    assert done.stdout == f"code=5\n{SHA256}\n"


def test_a_read_only_cache_with_a_good_file_works(tmp_path, host):
    cache = tmp_path / "cache"
    assert subprocess.run(command(host.url("good"), cache), env=environment(), capture_output=True).returncode == 0
    bind = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,bind,ro {tmp_path}; cd /\n"
    done = in_own_mounts(bind + in_shell(host.url("good"), cache), env=environment())
    assert (done.stdout, done.stderr) == (f"{cache}/files/{SHA256}.pth True\n", "")
    (cache / "files" / f"{SHA256}.pth").write_bytes(b"damaged")
    done = in_own_mounts(bind + in_shell(host.url("good"), cache), env=environment())
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith("Error: cannot write the file (")
    assert "read-only" in done.stderr
