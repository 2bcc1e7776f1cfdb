"""Files a user brings: adopted whatever they are called, refused unless they fit; bundles that carry them offline."""

import dataclasses
import hashlib
import io
import json
import random
import tarfile

import pytest

from dgmn2cli import zoo
from dgmn2cli.errors import ConfigError, Dgmn2Error, IntegrityError, ResourceError
from dgmn2cli.files import hash_file
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo.bundle import INDEX, adopt_offered, check_bundle_target, copy_to, is_bundle, write_bundle
from dgmn2cli.zoo.cache import from_cache

PARAMS = 1000
CONTENTS = {key: random.Random(key).randbytes(4 * PARAMS + 100) for key in ("fpn-tiny", "setr_pup-tiny", "dgmn2_tiny")}
MANIFEST = zoo.load_zoo()
ENTRIES = [dataclasses.replace(MANIFEST.entry(key), params=PARAMS) for key in CONTENTS]


def verify_for(entry):
    def verify(path):
        if path.read_bytes() != CONTENTS[entry.key]:
            raise IntegrityError("the checkpoint does not fit the model", where=path, why="another content")
        return hash_file(path)

    return verify


def offer(path, entries, cache, all_wanted=True):
    return adopt_offered(path, entries, all_wanted=all_wanted, cache=cache, verify_for=verify_for)


@pytest.fixture
def folder(tmp_path):
    """Three model files under names that say nothing or lie, among other things."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    names = {
        "fpn-tiny": "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes (1).pth",
        "setr_pup-tiny": "a",
        "dgmn2_tiny": "b",
    }
    for key, name in names.items():
        (folder / name).write_bytes(CONTENTS[key])
    (folder / "notes.txt").write_text("hello")
    (folder / "large").write_bytes(b"\0" * 5000)
    (folder / "sub").mkdir()
    return folder


def test_a_folder_is_sorted_out_by_content(tmp_path, folder):
    found = offer(folder, ENTRIES, tmp_path / "cache")
    assert [file.key for file in found] == list(CONTENTS)
    for file in found:
        assert file.path.read_bytes() == CONTENTS[file.key]
        assert file.pin == "new"
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 3


@pytest.mark.parametrize("tag", ["-", "0123456789ab"])
def test_a_file_is_adopted_whole_after_a_process_that_died_halfway(tmp_path, folder, tag):
    parts, place = tmp_path / "cache" / "parts", hashlib.sha256(f"file:{folder / 'a'}".encode()).hexdigest()[:12]
    parts.mkdir(parents=True)
    (parts / f"setr_pup-tiny@{place}.{tag}.999999999.0badcafe.part").write_bytes(CONTENTS["setr_pup-tiny"][:PARAMS])
    (found,) = offer(folder / "a", ENTRIES[1:2], tmp_path / "cache")
    assert found.path.read_bytes() == CONTENTS["setr_pup-tiny"]
    assert list(parts.glob("*.part")) == []


def test_a_folder_must_hold_what_is_named_and_may_hold_what_is_not(tmp_path, folder):
    (folder / "b").unlink()
    with pytest.raises(IntegrityError, match=r"some files are missing .*dgmn2_tiny"):
        offer(folder, ENTRIES, tmp_path / "one")
    assert len(offer(folder, ENTRIES, tmp_path / "two", all_wanted=False)) == 2
    for name in ("a", "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes (1).pth"):
        (folder / name).unlink()
    with pytest.raises(IntegrityError, match="no file fits"):
        offer(folder, ENTRIES, tmp_path / "three", all_wanted=False)
    assert not (tmp_path / "three").exists()


def test_a_single_file_is_recognised(tmp_path, folder):
    (found,) = offer(folder / "a", ENTRIES, tmp_path / "cache", all_wanted=False)
    assert found.key == "setr_pup-tiny"
    with pytest.raises(IntegrityError, match="another content"):
        offer(folder / "a", ENTRIES[:1], tmp_path / "cache")
    for nothing in (tmp_path / "none", ""):
        with pytest.raises((ResourceError, IntegrityError)):
            offer(tmp_path / nothing, ENTRIES, tmp_path / "cache", all_wanted=False)


def test_a_folder_of_very_many_files_is_refused(tmp_path):
    for number in range(1001):
        (tmp_path / str(number)).touch()
    with pytest.raises(ConfigError, match="1,001 files"):
        offer(tmp_path, ENTRIES, tmp_path / "cache")


@pytest.fixture
def bundle(tmp_path, folder):
    files = offer(folder, ENTRIES, tmp_path / "cache")
    return write_bundle(files, tmp_path / "bundle.tar")


def test_a_bundle_carries_everything(tmp_path, bundle):
    assert is_bundle(bundle)
    elsewhere = tmp_path / "elsewhere"
    assert [file.key for file in offer(bundle, ENTRIES, elsewhere)] == list(CONTENTS)
    for entry in ENTRIES:
        assert from_cache(entry, elsewhere).path.read_bytes() == CONTENTS[entry.key]
    (one,) = offer(bundle, ENTRIES[1:2], tmp_path / "third")
    assert one.key == "setr_pup-tiny"
    assert "bundle.tar: setr_pup-tiny" in one.source


def test_the_same_files_make_the_same_bundle(tmp_path, bundle):
    again = write_bundle([from_cache(entry, tmp_path / "cache") for entry in ENTRIES], tmp_path / "again.tar")
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(bundle.read_bytes()).digest()


def test_a_bundle_replaces_only_a_bundle(tmp_path, bundle):
    check_bundle_target(bundle)
    check_bundle_target(tmp_path / "new.tar")
    (tmp_path / "photo.png").write_bytes(b"mine")
    for path in (tmp_path / "photo.png", tmp_path):
        with pytest.raises(ResourceError, match="something else is there"):
            check_bundle_target(path)


def test_a_changed_file_is_not_bundled(tmp_path, folder):
    files = offer(folder, ENTRIES, tmp_path / "cache")
    files[0].path.write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="no longer what was verified"):
        write_bundle(files, tmp_path / "bundle.tar")
    assert not (tmp_path / "bundle.tar").exists()


def test_100_damaged_bundles_publish_nothing_wrong(tmp_path, bundle):
    """Cut, flipped and overwritten bundles: an honest error, or the right files."""
    data = bundle.read_bytes()
    rng = random.Random(5)
    failed = 0
    for number in range(100):
        at = rng.randrange(len(data))
        flipped = bytes([data[at] ^ (1 << rng.randrange(8))])
        damaged = data[:at] + (b"" if number % 2 else flipped + data[at + 1 :])
        (tmp_path / "damaged.tar").write_bytes(damaged)
        cache = tmp_path / "caches" / str(number)
        try:
            offer(tmp_path / "damaged.tar", ENTRIES, cache)
        except Dgmn2Error as error:
            failed += 1
            assert error.exit_code == 3, error  # noqa: PT017
        for path in (cache / "files").glob("*"):
            assert path.read_bytes() in CONTENTS.values()
            assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    assert failed > 60


def tar_with(path, members, index=None):
    lines = [{"key": key, "sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for key, c in CONTENTS.items()]
    with tarfile.open(path, "w") as tar:
        text = json.dumps({"format": 1, "files": lines} if index is None else index).encode()
        for name, kind, content, link in [(INDEX, tarfile.REGTYPE, text, ""), *members]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_hostile_bundles(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    name = f"files/{hashlib.sha256(CONTENTS['fpn-tiny']).hexdigest()}.pth"
    content = CONTENTS["fpn-tiny"]
    hostile = [
        ("../victim", tarfile.REGTYPE, content, ""), (str(victim), tarfile.REGTYPE, content, ""),
        (name, tarfile.SYMTYPE, b"", str(victim)), (name, tarfile.LNKTYPE, b"", str(victim)),
        (name, tarfile.FIFOTYPE, b"", ""), (name, tarfile.CHRTYPE, b"", ""), (name, tarfile.REGTYPE, content[:-1], ""),
    ]  # fmt: skip
    assert len(hostile) == 7
    for number, member in enumerate(hostile):
        cache = tmp_path / f"cache{number}"
        with pytest.raises(IntegrityError):
            offer(tar_with(tmp_path / "b.tar", [member]), ENTRIES[:1], cache)
        assert not (cache / "files").exists()
    assert victim.read_bytes() == b"precious"
    good = tar_with(tmp_path / "b.tar", [*hostile[:6], (name, tarfile.REGTYPE, content, "")])
    assert len(offer(good, ENTRIES[:1], tmp_path / "cache")) == 1


@pytest.mark.parametrize("index", [[], {}, {"format": 2, "files": []}, {"format": 1, "files": [{}]}, {"files": 7}, "x"])
def test_strange_indexes(tmp_path, index):
    with pytest.raises(IntegrityError, match="cannot use the bundle"):
        offer(tar_with(tmp_path / "b.tar", [], index), ENTRIES, tmp_path / "cache")


def test_an_index_that_lies_about_its_files(tmp_path):
    """The index says that one model's bytes are another's: the structural check decides, not the index."""
    content = CONTENTS["fpn-tiny"]
    sha256 = hashlib.sha256(content).hexdigest()
    index = {"format": 1, "files": [{"key": "setr_pup-tiny", "sha256": sha256, "size": len(content)}]}
    bundle = tar_with(tmp_path / "b.tar", [(f"files/{sha256}.pth", tarfile.REGTYPE, content, "")], index)
    with pytest.raises(IntegrityError, match="another content"):
        offer(bundle, ENTRIES[1:2], tmp_path / "cache")
    assert caching.find_record(ENTRIES[1], tmp_path / "cache") is None


def test_the_indexs_hash_is_compared_whatever_the_check_says(tmp_path):
    content = CONTENTS["fpn-tiny"]
    name = f"files/{hashlib.sha256(content).hexdigest()}.pth"
    for at in (0, len(content) // 2, len(content) - 1):
        flipped = content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]
        bundle = tar_with(tmp_path / "b.tar", [(name, tarfile.REGTYPE, flipped, "")])
        cache = tmp_path / f"cache{at}"
        with pytest.raises(IntegrityError, match="sha256"):
            adopt_offered(bundle, ENTRIES[:1], all_wanted=True, cache=cache, verify_for=lambda entry: hash_file)
        assert not (cache / "files").exists()


def test_copies_for_the_user(tmp_path, folder):
    entry = ENTRIES[1]
    (file,) = offer(folder / "a", [entry], tmp_path / "cache")
    copied = copy_to(file, tmp_path / "dest", entry.file_name, overwrite=False)
    assert copied.path == tmp_path / "dest" / "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes.pth"
    assert copied.path.read_bytes() == CONTENTS[entry.key]
    assert copy_to(file, tmp_path / "dest", entry.file_name, overwrite=False) == copied
    copied.path.write_bytes(b"mine")
    with pytest.raises(ResourceError, match="another file is there"):
        copy_to(file, tmp_path / "dest", entry.file_name, overwrite=False)
    assert copied.path.read_bytes() == b"mine"
    file.path.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="no longer what was verified"):
        copy_to(file, tmp_path / "dest", entry.file_name, overwrite=True)
    assert copied.path.read_bytes() == b"mine"
