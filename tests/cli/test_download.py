"""`dgmn2 download`, `zoo verify` and `zoo pin` as a user meets them, against pretend hosts, with real checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretend_hosts import Host

import dgmn2cli
from dgmn2cli.cli import main
from dgmn2cli.cli.download import choose_source, collect
from dgmn2cli.errors import ConfigError, IntegrityError, NetworkError, ResourceError
from dgmn2cli.inference.load import build_model, ensure_weights
from dgmn2cli.model.backbone import Classifier
from dgmn2cli.observer import Silent
from dgmn2cli.zoo import Source, load_zoo
from dgmn2cli.zoo.http import DRIVE

ROOT = Path(dgmn2cli.__file__).parents[1]
PUBLISHED = json.loads((ROOT / "zoo.json").read_text())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with a whole checkpoint of the default model and of the tiny backbone, and broken ones."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    model = {"meta": {}, "state_dict": build_model("setr_pup-tiny").state_dict(), "optimizer": {}}
    backbone = Classifier("tiny").state_dict()
    torch.save(model, folder / "model.pth")
    torch.save(backbone, folder / "backbone.pth")
    torch.save({key: value for key, value in backbone.items() if "block3" not in key}, folder / "missing.pth")
    backbone["head.bias"][0] = float("nan")
    torch.save(backbone, folder / "nan.pth")
    return folder


@pytest.fixture(scope="module")
def hosts(checkpoints):
    """One pretend host per checkpoint."""
    hosts = {path.stem: Host(path.read_bytes()) for path in checkpoints.iterdir()}
    yield hosts
    for host in hosts.values():
        host.stop()


def manifest(path, urls):
    """A manifest whose entries have these addresses."""
    document = json.loads(json.dumps(PUBLISHED))
    for item in (*document["segmentors"], *document["imagenet_backbones"]):
        if item["key"] in urls:
            item["sources"] = [{"type": "https", "url": url} for url in urls[item["key"]].split()]
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def call(capsys, tmp_path):
    def call(*arguments, urls=None):
        zoo = ["--zoo", manifest(tmp_path / "zoo.json", urls)] if urls else []
        code = main([*zoo, *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def cached_files():
    return [path for path in Path(os.environ["DGMN2_CACHE"]).rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_path_is_the_last_line_and_the_second_time_needs_no_network(call, hosts, checkpoints):
    urls = {"dgmn2_tiny": hosts["backbone"].url("good")}
    code, out, err = call("download", "--backbone", "tiny", urls=urls)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 3
    assert Path(lines[-1]).read_bytes() == (checkpoints / "backbone.pth").read_bytes()
    assert lines[0].startswith("dgmn2_tiny: 48.5 MB, ")
    assert lines[1].endswith(", recorded now")
    code, again, _ = call("download", "dgmn2_tiny", "--offline", urls=urls)
    assert (code, again.splitlines()[-1]) == (0, lines[-1])
    assert "already there" in again
    code, out, err = call("download", "dgmn2_tiny", "--offline", "--force", urls=urls)
    assert (code, out) == (4, "")
    assert "(dgmn2_tiny): the network is switched off" in err
    assert lines[-1] in err
    code, out, _ = call("download", "dgmn2_tiny", "--json", urls=urls)
    (file,) = json.loads(out)["files"]
    assert (file["pin"], file["cached"], file["path"]) == ("recorded", True, lines[-1])
    assert lines[-1] in call("zoo", "show", "dgmn2_tiny", urls=urls)[1]


def test_the_default_model_comes_from_drive_without_any_argument(hosts, tmp_path):
    """A whole process, the published manifest, and only Google Drive's address replaced."""
    host = hosts["model"]
    (entry,) = (item for item in PUBLISHED["segmentors"] if item["key"] == PUBLISHED["default"])
    address = f"{host.base}/uc?id=form&real={{id}}"
    program = f"""
import sys
from dgmn2cli.zoo import http
from dgmn2cli.cli import main
assert http.DRIVE == {DRIVE!r}
http.DRIVE = {address!r}
code = main(["download"])
assert "torch._dynamo" not in sys.modules, "torch's compiler was imported, which takes a second"
sys.exit(code)"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DGMN2_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.splitlines()[-1]).read_bytes() == host.content
    assert entry["sources"][0]["id"] in done.stdout


WRONG = [
    ("missing", "good", 3, " (dgmn2_tiny from http://"),
    ("nan", "good", 7, "holds NaN or infinite weights (dgmn2_tiny from http://"),
    ("model", "good", 3, " (dgmn2_tiny from http://"),
    ("backbone", "cut", 3, " (dgmn2_tiny from http://"),
    ("backbone", "flipped", 3, " (dgmn2_tiny from http://"),
    ("backbone", "page", 4, "a web page instead of the file"),
    ("backbone", "404", 4, "status 404"),
    ("backbone", "page", 4, "`dgmn2 download dgmn2_tiny --from FILE`"),
]


@pytest.mark.parametrize(("what", "manner", "code", "said"), WRONG)
def test_a_wrong_file_is_refused(call, hosts, what, manner, code, said):
    seen, out, err = call("download", "dgmn2_tiny", "--retries", "0", urls={"dgmn2_tiny": hosts[what].url(manner)})
    assert (seen, out) == (code, "")
    assert said in err.splitlines()[-1]
    assert cached_files() == []


def test_a_hostile_pickle_is_not_executed(call, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"state_dict": Hostile(), "padding": torch.zeros(12_200_000)}, tmp_path / "hostile.pth")
    code, _, err = call("download", "dgmn2_tiny", "--from", tmp_path / "hostile.pth")
    assert code == 3
    assert "mkdir" in err
    assert not (tmp_path / "executed").exists()
    assert cached_files() == []


def test_one_failure_does_not_stop_the_others(call, hosts):
    urls = {"dgmn2_tiny": hosts["backbone"].url("good"), "dgmn2_small": hosts["backbone"].url("404")}
    code, out, err = call("download", "dgmn2_small", "dgmn2_tiny", urls=urls)
    assert code == 4
    assert Path(out.splitlines()[-1]).is_file()
    assert err.startswith("Error: the server refuses")
    urls["dgmn2_large"] = urls["dgmn2_small"]
    code, out, err = call("download", "--json", "--backbone", "small", "--backbone", "large", "dgmn2_tiny", urls=urls)
    assert code == 4
    assert [failure["key"] for failure in json.loads(out)["failures"]] == ["dgmn2_small", "dgmn2_large"]
    assert err.splitlines()[-1] == "Error: 2 of 3 downloads failed. The others are done; run it again for these."
    code, _, err = call("download", "--offline", "fpn-tiny", "fpn-small")
    assert (code, err.splitlines()[-1]) == (4, "Error: 2 of 2 downloads failed. Nothing was downloaded.")


def test_other_sources(call, hosts):
    host = hosts["backbone"]
    urls = {"dgmn2_tiny": f"{host.url('404')} {host.url('good')}"}
    code, _, err = call("download", "dgmn2_tiny", urls=urls)
    assert code == 0
    assert "Source 1 of dgmn2_tiny failed" in err
    assert call("download", "dgmn2_tiny", "--source", "1", urls=urls)[0] == 4
    assert call("download", "dgmn2_tiny", "--source", "2", urls=urls)[0] == 0
    assert call("download", "dgmn2_tiny", "--source", host.url("chunked"), urls=urls)[1].count(host.url("chunked")) == 1
    assert call("download", "dgmn2_tiny", "--source", "http://example.org/", urls=urls)[0] == 2
    assert call("download", "dgmn2_tiny", "dgmn2_small", "--source", "1", urls=urls)[0] == 2


def test_adopting_copying_and_bundling(call, checkpoints, tmp_path):
    dest, bundle = tmp_path / "dest", tmp_path / "bundle.tar"
    keys = ("setr_pup-tiny", "dgmn2_tiny")
    code, out, err = call("download", *keys, "--from", checkpoints, "--dest", dest, "--bundle", bundle)
    assert (code, err) == (0, "")
    names = ["setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes.pth", "dgmn2_tiny_model.pth"]
    assert out.splitlines()[-2:] == [str(dest / name) for name in names]
    assert (dest / names[0]).read_bytes() == (checkpoints / "model.pth").read_bytes()
    (dest / names[1]).write_bytes(b"mine")
    code, _, err = call("download", "dgmn2_tiny", "--offline", "--dest", dest)
    assert (code, "another file is there" in err) == (5, True)
    assert call("download", "dgmn2_tiny", "--offline", "--dest", dest, "--force", "--from", bundle)[0] == 0
    assert (dest / names[1]).read_bytes() == (checkpoints / "backbone.pth").read_bytes()
    assert json.loads(call("zoo", "verify", "--json")[1])["files"][0]["state"] == "good"


def test_a_bundle_works_without_network(call, checkpoints, tmp_path):
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urn", "true"], capture_output=True).returncode:
        pytest.skip("a private network namespace is not permitted here")
    bundle = tmp_path / "bundle.tar"
    assert call("download", "dgmn2_tiny", "--from", checkpoints / "backbone.pth", "--bundle", bundle)[0] == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DGMN2_CACHE": str(tmp_path / "elsewhere")}
    command = [unshare, "-Urn", sys.executable, "-m", "dgmn2cli", "download", "--from", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.splitlines()[-1]).read_bytes() == (checkpoints / "backbone.pth").read_bytes()


def test_a_dry_run_does_nothing(call, hosts):
    host = hosts["backbone"]
    host.asked.clear()
    code, out, err = call("download", "--all", "--backbone", "all", "--dry-run", urls={"dgmn2_tiny": host.url("good")})
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 20
    assert f"dgmn2_tiny: would be fetched from {host.url('good')}" in out
    assert not host.asked
    assert cached_files() == []


def test_a_dry_run_says_what_would_be_adopted(call, checkpoints, tmp_path):
    def plan(*arguments):
        code, out, err = call("download", *arguments, "--dry-run")
        assert (code, err) == (0, "")
        return out.splitlines()

    model, backbone = checkpoints / "model.pth", checkpoints / "backbone.pth"
    adopted = [f"setr_pup-tiny: would be adopted from {model}", f"dgmn2_tiny: would be adopted from {backbone}"]
    assert plan("--from", checkpoints) == adopted
    assert plan("dgmn2_tiny", "--from", model) == [f"nothing would be adopted: no file fits ({model})"]
    assert cached_files() == []
    bundle = tmp_path / "bundle.tar"
    assert call("download", "dgmn2_tiny", "--from", backbone, "--bundle", bundle)[0] == 0
    size = backbone.stat().st_size
    assert plan("--from", bundle) == [f"dgmn2_tiny: would be adopted from the bundle, {size:,} bytes"]
    assert plan("fpn-tiny", "--from", bundle) == [f"nothing would be adopted: no file fits ({bundle})"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fpn-tny"], 2, "Did you mean fpn-tiny?"),
        (["../../x"], 2, "no such model (../../x)"),
        (["--backbone", "huge"], 2, "no such backbone (huge)"),
        (["--source", "7"], 2, "no source 7 (setr_pup-tiny): it has 1"),
        (["--timeout", "1,2"], 2, "neither TOTAL nor CONNECT,READ,TOTAL"),
        (["--timeout", "0"], 2, "neither TOTAL nor CONNECT,READ,TOTAL"),
        (["--retries", "-1"], 2, "invalid value for '--retries'"),
        (["--from", "/no/such"], 5, "cannot read the file (/no/such)"),
        (["--from", "/dev/zero"], 3, "wanted a file"),
        (["--offline"], 4, "the network is switched off"),
    ],
)
def test_errors_are_one_line_with_a_way_out(call, arguments, code, said):
    seen, out, err = call("download", *arguments)
    assert (seen, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
    assert cached_files() == []


def test_verify_and_pin(call, hosts, tmp_path):
    urls = {"dgmn2_tiny": hosts["backbone"].url("good")}
    assert call("zoo", "verify") == (0, "No file of the zoo is on disk.\n", "")
    assert call("zoo", "pin", "-o", tmp_path / "mine.json")[0] == 2
    path = Path(call("download", "dgmn2_tiny", urls=urls)[1].splitlines()[-1])
    assert call("zoo", "verify", "dgmn2_tiny", urls=urls)[0] == 0
    code, _, err = call("zoo", "verify", "dgmn2_tiny", "fpn-tiny", urls=urls)
    assert (code, err.splitlines()[0]) == (1, "fpn-tiny: not on disk")
    code, out, _ = call("zoo", "pin", "-o", tmp_path / "mine.json", urls=urls)
    assert (code, out.splitlines()) == (0, ["1 pinned: dgmn2_tiny", str(tmp_path / "mine.json")])
    pinned = load_zoo(tmp_path / "mine.json").backbone("tiny")
    assert (pinned.sha256, pinned.size) == (path.stem, path.stat().st_size)
    assert call("zoo", "pin", "-o", tmp_path / "mine.json", urls=urls)[0] == 2
    assert "pinned" in call("zoo", "show", "dgmn2_tiny", "--zoo", tmp_path / "mine.json")[1]
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = call("zoo", "verify", urls=urls)
    assert (code, err.splitlines()[0]) == (1, f"dgmn2_tiny: damaged ({path})")
    assert err.endswith("Get a good copy with `dgmn2 download dgmn2_tiny`.\n")
    assert "damaged" in out
    assert call("zoo", "pin", "-o", tmp_path / "other.json", urls=urls)[0] == 3
    assert call("download", "dgmn2_tiny", "--offline", urls=urls)[0] == 3
    assert call("download", "dgmn2_tiny", urls=urls)[0] == 0
    assert call("zoo", "verify", urls=urls)[0] == 0


def test_a_replaced_file_does_not_pass_a_pinned_manifest(call, hosts, tmp_path):
    urls = {"dgmn2_tiny": hosts["backbone"].url("good")}
    document = json.loads(Path(manifest(tmp_path / "pinned.json", urls)).read_text())
    document["imagenet_backbones"][0]["sha256"] = "0" * 64
    (tmp_path / "pinned.json").write_text(json.dumps(document))
    code, _, err = call("download", "dgmn2_tiny", "--zoo", tmp_path / "pinned.json")
    assert code == 3
    assert f"wanted {'0' * 64}" in err
    assert cached_files() == []


class Watching(Silent):
    """An observer that remembers what it was told."""

    def __init__(self):
        self.notes, self.tasks, self.done = [], [], 0

    def note(self, message):
        self.notes.append(message)

    def begin(self, task, total=None, *, done=0, unit=""):
        self.tasks.append((task, total, unit))

    def advance(self, parts=1, *, done=None, total=None, detail=""):
        self.done = self.done + parts if done is None else done


@pytest.fixture
def publish(hosts, tmp_path, monkeypatch):
    """Serves a host as the published source of everything on Google Drive."""

    def publish(what, manner="direct"):
        address = f"{hosts[what].base}/uc?id={manner}&real={{id}}"
        monkeypatch.setattr("dgmn2cli.zoo.http.DRIVE", address)
        hosts[what].asked.clear()
        return hosts[what]

    return publish


def test_load_downloads_on_first_use_and_reads_the_file_once(publish, checkpoints, tmp_path, monkeypatch):
    from dgmn2cli.checkpoint import weights
    from dgmn2cli.inference import load as loading

    host, cache, reads, watching = publish("model"), tmp_path / "cache", [], Watching()

    def read(path, **settings):
        reads.append(path)
        return real(path, **settings)

    real = weights.read_checkpoint
    monkeypatch.setattr(weights, "read_checkpoint", read)
    monkeypatch.setattr(loading, "read_checkpoint", read)
    segmenter = dgmn2cli.load(device="cpu", backend="reference", cache=cache, observer=watching)
    size = (checkpoints / "model.pth").stat().st_size
    assert Path(segmenter.info.checkpoint).read_bytes() == host.content
    assert Path(segmenter.info.checkpoint).parent == cache / "files"
    assert segmenter.info.sha256 == Path(segmenter.info.checkpoint).stem
    assert len(reads) == 1
    assert len(watching.notes) == 1
    assert (watching.tasks, watching.done) == ([("setr_pup-tiny", size, "bytes")], size)
    monkeypatch.setattr("dgmn2cli.zoo.fetch.fetch", None)
    watching = Watching()
    again = dgmn2cli.load(device="cpu", backend="reference", cache=cache, observer=watching, offline=True)
    assert again.info == segmenter.info
    assert len(reads) == 2
    assert watching.notes == []


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_load_does_not_touch_the_network_when_told_so(publish, tmp_path, monkeypatch, how):
    host = publish("model")
    if how == "environment":
        monkeypatch.setenv("DGMN2_OFFLINE", "1")
    with pytest.raises(NetworkError, match="switched off"):
        dgmn2cli.load(device="cpu", backend="reference", cache=tmp_path / "cache", offline=how == "argument")
    assert not host.asked
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("what", "manner", "kind"), [("backbone", "direct", IntegrityError), ("model", "quota", NetworkError)]
)
def test_load_refuses_a_wrong_file_and_leaves_nothing(publish, tmp_path, what, manner, kind):
    publish(what, manner)
    with pytest.raises(kind):
        dgmn2cli.load(device="cpu", backend="reference", cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_load_finds_faults_before_it_downloads(publish, tmp_path):
    host = publish("model")
    for settings in ({"device": "nosuch"}, {"backend": "nosuch"}, {"dtype": "nosuch"}, {"name": "nosuch"}):
        with pytest.raises((ConfigError, ResourceError)):
            dgmn2cli.load(**{"device": "cpu", **settings}, cache=tmp_path / "cache")
    assert not host.asked


def test_a_backbones_weights_on_first_use(publish, tmp_path):
    publish("backbone")
    weights = ensure_weights(load_zoo().backbone("tiny"), tmp_path / "cache")
    assert weights.read.sha256 == weights.sha256 == weights.path.stem
    assert weights.read.path == weights.path
    assert ensure_weights(load_zoo().backbone("tiny"), tmp_path / "cache", offline=True).read is None


def test_another_manifests_download_is_not_the_published_file(call, hosts, checkpoints, tmp_path):
    """Somebody's manifest lists the published source and one more, and is looked at once."""
    document = json.loads(json.dumps(PUBLISHED))
    for item in document["imagenet_backbones"]:
        item["sources"].append({"type": "file", "path": str(checkpoints / "backbone.pth")})
    (tmp_path / "other.json").write_text(json.dumps(document))
    other = ("--zoo", tmp_path / "other.json", "--offline")
    for way in ((), ("--from", checkpoints / "backbone.pth")):
        assert call("download", "dgmn2_tiny", *way, *other)[0] == 0
        assert json.loads(call("zoo", "show", "dgmn2_tiny", "--json", *other)[1])["hash_state"] == "recorded"
        shown = json.loads(call("zoo", "show", "dgmn2_tiny", "--json")[1])
        assert (shown["hash_state"], shown["on_disk"]) == ("unknown", False)
        assert call("download", "dgmn2_tiny", "--offline")[0] == 4
        assert call("zoo", "pin", "dgmn2_tiny", "-o", tmp_path / "mine.json")[0] == 2
    assert call("download", "dgmn2_tiny", "--from", checkpoints / "backbone.pth")[0] == 0
    assert json.loads(call("zoo", "show", "dgmn2_tiny", "--json")[1])["hash_state"] == "recorded"


def test_a_bundle_damaged_on_the_way_is_refused(call, checkpoints, tmp_path):
    """A bit of a weight, in a file whose format has no checksums of its own: only the bundle's index knows better."""
    old, bundle = tmp_path / "old.pth", tmp_path / "bundle.tar"
    torch.save(torch.load(checkpoints / "backbone.pth"), old, _use_new_zipfile_serialization=False)
    assert call("download", "dgmn2_tiny", "--from", old, "--bundle", bundle)[0] == 0
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0x40
    bundle.write_bytes(data)
    for keys in ((), ("dgmn2_tiny",)):
        code, _, err = call("download", *keys, "--from", bundle, "--cache", tmp_path / "elsewhere")
        assert code == 3
        assert "sha256" in err
        assert not (tmp_path / "elsewhere" / "files").exists()


@pytest.mark.parametrize("place", ["--from", "--zoo"])
def test_what_is_no_file_is_refused_at_once(call, tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    codes = {"--from": 3, "--zoo": 2}
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/null"):
        for more in ((), ("--dry-run",)):
            assert call("download", "dgmn2_tiny", place, path, "--offline", *more)[0] == codes[place]


def test_a_failure_does_not_keep_others_from_being_done():
    done = []

    def get(entry):
        if entry.key == "fpn-tiny":
            raise ResourceError("cannot write the file")
        done.append(entry.key)
        return entry

    report, error = collect([load_zoo().entry(key) for key in ("fpn-tiny", "setr_pup-tiny", "dgmn2_tiny")], get)
    assert done == ["setr_pup-tiny", "dgmn2_tiny"]
    assert [(f.key, f.exit_code) for f in report.failures] == [("fpn-tiny", 5)]
    assert str(error) == "cannot write the file."
    report, error = collect([load_zoo().find("fpn-tiny")] * 2, get)
    assert str(error).startswith("2 of 2 downloads failed")
    assert error.faults == ("fpn-tiny: cannot write the file.",) * 2


def test_choosing_a_source():
    entry = load_zoo().find("fpn-tiny")
    assert choose_source(entry, "1") == entry.sources[0]
    assert choose_source(entry, "https://example.org/x") == Source("https", "https://example.org/x")
    drive = Source("gdrive", "1Fz_VgIDvX7WcrEJcdYiB85KWOUGz7qPC")
    for url in (
        "file/d/{}/view?usp=sharing",
        "file/d/{}",
        "uc?export=download&id={}",
        "open?id={}",
        "file/u/0/d/{}/view",
    ):
        assert choose_source(entry, "https://drive.google.com/" + url.format(drive.location)) == drive
    for wrong in ("0", "2", "http://example.org/", "ftp://x/", "/etc/passwd", "", "x" * 9999):
        with pytest.raises(ConfigError):
            choose_source(entry, wrong)
