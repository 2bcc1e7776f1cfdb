"""Reading a manifest: every fault is named by its place, all at once, and nothing wrong gets through."""

import copy
import json
import os
import random
import string

import pytest

from dgmn2cli import resources
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.zoo.manifest import load_zoo, loopback, url_fault

PUBLISHED = json.loads(resources.zoo_path().read_text())


@pytest.fixture
def document():
    """A manifest with one model and one backbone."""
    small = copy.deepcopy(PUBLISHED)
    small["segmentors"] = [e for e in small["segmentors"] if e["key"] == "setr_pup-tiny"]
    small["imagenet_backbones"] = small["imagenet_backbones"][:1]
    return small


def load(tmp_path, content):
    path = tmp_path / "zoo.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_zoo(path)


def faults(tmp_path, content):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    error = caught.value
    assert error.exit_code == 2
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    return [*error.faults, error.why]


def test_a_correct_manifest_loads(tmp_path, document):
    document["segmentors"][0]["sources"] += [
        {"type": "https", "url": "https://example.org/model.pth"},
        {"type": "https", "url": "http://127.0.0.1:8000/model.pth"},
        {"type": "file", "path": "weights/model.pth"},
    ]
    document["segmentors"][0].update(sha256="0" * 64, size=5, miou=None)
    entry = load(tmp_path, document).segmentors[0]
    assert [s.type for s in entry.sources] == ["gdrive", "https", "https", "file"]
    assert entry.sources[3].location == str(tmp_path / "weights/model.pth")
    assert entry.sources[0].address.startswith("https://drive.google.com/file/d/1Fz_")
    assert (entry.miou, entry.size) == (None, 5)


def mutate(path, value):
    def change(document):
        target = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return change


S, B = "segmentors", "imagenet_backbones"
WRONG = [
    (("version",), 2, "version: 2"),
    (("version",), "1", "version: '1'"),
    (("version",), True, "version: true"),
    (("default",), "fpn-tiny", "default: 'fpn-tiny' is no segmentor's key"),
    (("default",), None, "default: none"),
    (("extra",), 1, "extra: unknown key"),
    ((S,), [], "segmentors: []"),
    ((S,), {}, "segmentors: a table"),
    ((S, 0), 7, "segmentors[0]: 7, wanted a table"),
    ((S, 0, "key"), "../../x", "segmentors[0].key: '../../x'"),
    ((S, 0, "key"), "", "segmentors[0].key: ''"),
    ((S, 0, "key"), "Upper", "segmentors[0].key: 'Upper'"),
    ((S, 0, "config"), "a/b", "segmentors[0].config: 'a/b'"),
    ((S, 0, "config"), "x" * 10_000, "segmentors[0].config: 'xxx"),
    ((S, 0, "head"), ["x"], "segmentors[0].head: ['x']"),
    ((S, 0, "head"), "a\nb", "segmentors[0].head: 'a\\nb'"),
    ((S, 0, "backbone"), "dgmn2_huge", "segmentors[0].backbone: 'dgmn2_huge' is no backbone's key"),
    ((S, 0, "iters"), -1, "segmentors[0].iters: -1"),
    ((S, 0, "iters"), 1.5, "segmentors[0].iters: 1.5"),
    ((S, 0, "protocol"), "fast", "segmentors[0].protocol: 'fast'"),
    ((S, 0, "miou"), float("nan"), "segmentors[0].miou: nan"),
    ((S, 0, "miou"), float("inf"), "segmentors[0].miou: inf"),
    ((S, 0, "miou"), 101, "segmentors[0].miou: 101"),
    ((S, 0, "miou"), "78", "segmentors[0].miou: '78'"),
    ((S, 0, "miou"), True, "segmentors[0].miou: true"),
    ((S, 0, "params"), 10**300, "segmentors[0].params: an enormous number"),
    ((S, 0, "params"), None, "segmentors[0].params: none"),
    ((S, 0, "macs_769"), 0, "segmentors[0].macs_769: 0"),
    ((S, 0, "size"), "5", "segmentors[0].size: '5'"),
    ((S, 0, "sha256"), "0" * 63, "segmentors[0].sha256: '000"),
    ((S, 0, "sha256"), "A" * 64, "segmentors[0].sha256: 'AAA"),
    ((S, 0, "sha256"), "0" * 64 + "\n", "segmentors[0].sha256: '000"),
    ((S, 0, "mIoU"), 1, "segmentors[0].mIoU: unknown key"),
    ((S, 0, "iter"), 1, "segmentors[0].iter: unknown key; did you mean 'iters'?"),
    ((S, 0, "sources"), [], "segmentors[0].sources: []"),
    ((S, 0, "sources", 0, "type"), "ftp", "segmentors[0].sources[0].type: 'ftp'"),
    ((S, 0, "sources", 0, "id"), "a b", "segmentors[0].sources[0].id: 'a b'"),
    ((S, 0, "sources", 0, "url"), "https://x", "segmentors[0].sources[0].url: unknown key"),
    ((S, 0, "sources", 0), {"type": "https", "url": "ftp://x/y"}, "has the scheme 'ftp'"),
    ((S, 0, "sources", 0), {"type": "https", "url": "file:///etc/passwd"}, "has the scheme 'file'"),
    ((S, 0, "sources", 0), {"type": "https", "url": "http://example.org/y"}, "is plain http"),
    ((S, 0, "sources", 0), {"type": "https", "url": "https:///y"}, "names no host"),
    ((S, 0, "sources", 0), {"type": "https", "url": "https://u:p@x/y"}, "holds a user name"),
    ((S, 0, "sources", 0), {"type": "https", "url": "https://x/a\r\nb"}, "control characters"),
    ((S, 0, "sources", 0), {"type": "https", "url": "https://x:99999999/"}, "is no URL"),
    ((S, 0, "sources", 0), {"type": "https", "url": 7}, "sources[0].url: 7"),
    ((S, 0, "sources", 0), {"type": "file", "path": ""}, "sources[0].path: ''"),
    ((B, 0, "file_name"), "../x.pth", "imagenet_backbones[0].file_name: '../x.pth'"),
    ((B, 0, "key"), "setr_pup-tiny", "imagenet_backbones[0].key: 'setr_pup-tiny' is already used by segmentors[0].key"),
    ((B, 0, "top1"), -1, "imagenet_backbones[0].top1: -1"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[case[2][:50] for case in WRONG])
def test_a_wrong_value_is_named_by_its_place(tmp_path, document, path, value, said):
    mutate(path, value)(document)
    assert any(said in fault for fault in faults(tmp_path, document))


REQUIRED = [("segmentors", key) for key in PUBLISHED["segmentors"][0]] + [
    ("imagenet_backbones", key) for key in PUBLISHED["imagenet_backbones"][0]
]


def test_every_missing_key_is_named(tmp_path, document):
    assert len(REQUIRED) == 27
    for group, key in REQUIRED:
        broken = copy.deepcopy(document)
        del broken[group][0][key]
        assert any(f"{group}[0].{key}: missing" in fault for fault in faults(tmp_path, broken))


def test_all_faults_are_reported_at_once(tmp_path, document):
    document["segmentors"][0].update(miou=-1, iters="x", sha256="abc")
    document["extra"] = 1
    found = faults(tmp_path, document)
    assert sum(": " in fault for fault in found[:-1]) == 4
    assert "4 faults" in found[-1]


def test_a_key_given_twice_is_named(tmp_path, document):
    text = json.dumps(document).replace('"iters":', '"iters": 5, "iters":')
    assert any("segmentors[0].iters: is given twice" in fault for fault in faults(tmp_path, text))
    assert any("default: is given twice" in f for f in faults(tmp_path, '{"default": "a",' + json.dumps(document)[1:]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "line 1 is not UTF-8 text (byte 0xff)"),
        (b"[]", "[], wanted a table"),
        (b"null", "none, wanted a table"),
        (b"[" * 200_000, "nested too deeply"),
        (b"1" * 10_000, "not JSON"),
        (b" " * 5_000_001, "larger than 5,000,000 bytes"),
        (b"<!DOCTYPE html><html>", "not JSON"),
    ],
    ids=["empty", "cut", "utf16", "list", "null", "deep", "digits", "large", "html"],
)
def test_a_file_that_is_no_manifest(tmp_path, content, said):
    assert any(said in fault for fault in faults(tmp_path, content))


def test_what_is_no_readable_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none", "/dev/zero", "a\x00b", "x" * 5000):
        with pytest.raises(ConfigError) as caught:
            load_zoo(path)
        assert str(caught.value).isprintable()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    secret.chmod(0)
    if not os.access(secret, os.R_OK):
        with pytest.raises(ResourceError):
            load_zoo(secret)


def test_500_damaged_manifests_never_fail_otherwise(tmp_path):
    """Cut, overwritten and spliced copies either load or raise a ConfigError; nothing else, and most do not load."""
    text = json.dumps(PUBLISHED)
    rng = random.Random(20220909)
    refused = 0
    for number in range(500):
        start = rng.randrange(len(text))
        if number % 3 == 0:
            damaged = text[:start]
        elif number % 3 == 1:
            damaged = text[:start] + rng.choice(string.printable) + text[start + 1 :]
        else:
            end = min(len(text), start + rng.randrange(1, 200))
            damaged = text[:start] + text[end:]
        try:
            assert len(load(tmp_path, damaged).segmentors) >= 1
        except ConfigError:
            refused += 1
    assert 400 <= refused <= 500


def test_hosts_that_are_this_machine():
    assert loopback("localhost")
    assert loopback("127.0.0.1")
    assert loopback("127.9.9.9")
    assert loopback("::1")
    assert not loopback("127.0.0.1.example.org")
    assert not loopback("10.0.0.1")
    assert url_fault("https://example.org/x") == ""
    assert url_fault("http://[::1]:80/x") == ""
