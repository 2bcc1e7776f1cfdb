"""Damaged model files: flips, cuts, splices of each format, cached files, training states; wrong tensors."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dgmn2cli import zoo
from dgmn2cli.checkpoint.convert import convert
from dgmn2cli.checkpoint.unwrap import Checkpoint
from dgmn2cli.checkpoint.weights import load_weights, read_checkpoint, write_checkpoint
from dgmn2cli.training.state import TrainState, load_state, save_state
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo.cache import from_cache
from faults.verdicts import RIGHT, Faults, Kind, Violation, flipped, judged, spliced

META = {"CLASSES": ["road", "sky"], "iter": 7}


def network() -> nn.Module:
    """A small network with every kind of entry a checkpoint holds."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))


STATE = {key: value.clone() for key, value in network().state_dict().items()}


def same(state: object) -> bool:
    """Whether a state dict is the right one, bit by bit."""
    if isinstance(state, Checkpoint):
        state = state.state
    assert isinstance(state, dict)
    return equal(state, STATE)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and bits."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def good_files(folder: Path) -> dict[str, Path]:
    """The right file in each format."""
    write_checkpoint(folder / "good.pth", STATE, META)
    torch.save({"meta": META, "state_dict": STATE}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, folder / "good.safetensors")
    return {"pth": folder / "good.pth", "legacy": folder / "old.pth", "safetensors": folder / "good.safetensors"}


def with_known_hash(rng: random.Random, folder: Path, count: int) -> Faults:
    """Flips, cuts and splices of a file whose hash is known: none may be read, whatever the format."""
    files = {name: (path.read_bytes(), read_checkpoint(path).sha256) for name, path in good_files(folder).items()}
    target = folder / "damaged"
    for number in range(count):
        name = rng.choice(sorted(files))
        data, sha256 = files[name]
        kind = rng.choice(("flip", "cut", "splice", "longer"))
        damaged = {
            "flip": lambda data=data: flipped(data, rng, rng.choice((1, 1, 2, 8))),
            "cut": lambda data=data: data[: rng.randrange(len(data))],
            "splice": lambda data=data: spliced(data, rng),
            "longer": lambda data=data: data + rng.randbytes(rng.choice((1, 100))),
        }[kind]()

        def judge(damaged: bytes = damaged, data: bytes = data, sha256: str = sha256) -> str:
            target.write_bytes(damaged)
            outcome = judged(lambda: read_checkpoint(target, sha256=sha256), {3}, lambda read: damaged == data)
            if outcome == RIGHT and damaged != data:
                raise Violation("a file with another hash was read")
            return outcome

        yield f"{number} {name} {kind}", judge


def without_hash(rng: random.Random, folder: Path, count: int) -> Faults:
    """Flips and splices of a zip archive, cuts of every format, the hash not known: refused, or the right tensors."""
    files = {name: path.read_bytes() for name, path in good_files(folder).items()}
    target = folder / "damaged"
    for number in range(count):
        kind = rng.choice(("flip", "flip", "cut", "splice"))
        name = rng.choice(sorted(files)) if kind == "cut" else "pth"
        data = files[name]
        if kind == "cut":
            damaged = data[: rng.randrange(len(data))]
        else:
            damaged = spliced(data, rng) if kind == "splice" else flipped(data, rng, rng.choice((1, 1, 1, 3)))

        def judge(damaged: bytes = damaged) -> str:
            target.write_bytes(damaged)
            return judged(lambda: read_checkpoint(target), {3, 7}, same)

        yield f"{number} {name} {kind}", judge


def in_the_cache(rng: random.Random, folder: Path, count: int) -> Faults:
    """Damage to cached files and to the notes about them: never served, never loaded, never called good."""
    good = good_files(folder)["pth"].read_bytes()
    entry = zoo.find("setr_pup-tiny")
    cache = folder / "cache"
    for number in range(count):
        kind = rng.choice(("flip", "cut", "splice", "note"))
        seed = rng.randrange(1 << 30)

        def judge(kind: str = kind, seed: int = seed) -> str:
            chance = random.Random(seed)
            sha256 = _fill_cache(cache, entry, good)
            path, note = caching.file_path(cache, sha256), caching.record_path(entry, cache)
            broken = note if kind == "note" else path
            data = broken.read_bytes()
            cut = data[: chance.randrange(len(data))]
            broken.write_bytes(
                cut if kind == "cut" else spliced(data, chance) if kind == "splice" else flipped(data, chance)
            )
            served = judged(lambda: from_cache(entry, cache), {3}, lambda file: _whole(file, good))
            found = caching.locate(entry, cache)
            if found is None:
                return served
            loaded = judged(lambda: read_checkpoint(found.path, sha256=found.sha256), {3}, same)
            if loaded == RIGHT and path.read_bytes() != good:
                raise Violation("a damaged cached file was loaded")
            return loaded

        yield f"{number} {kind}", judge


def _fill_cache(cache: Path, entry: zoo.ZooEntry, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    caching.file_path(cache, sha256).parent.mkdir(parents=True, exist_ok=True)
    caching.file_path(cache, sha256).write_bytes(content)
    for old in (cache / "index").glob("*"):
        old.unlink()
    caching.record(entry, cache, sha256=sha256, size=len(content), source="here")
    return sha256


def _whole(file: object, good: bytes) -> bool:
    """Nothing is served, or the right bytes."""
    return file is None or file.path.read_bytes() == good  # type: ignore[attr-defined]


def conversions(rng: random.Random, folder: Path, count: int) -> Faults:
    """`convert` on damaged files: refused and nothing written, or the right tensors."""
    data = good_files(folder)["pth"].read_bytes()
    source, target = folder / "in.pth", folder / "out.safetensors"
    for number in range(count):
        damaged = rng.choice((flipped(data, rng), spliced(data, rng), data[: rng.randrange(len(data))]))

        def judge(damaged: bytes = damaged) -> str:
            source.write_bytes(damaged)
            target.unlink(missing_ok=True)
            outcome = judged(lambda: convert(source, target), {3, 7}, lambda report: same(read_checkpoint(target)))
            if outcome != RIGHT and target.exists():
                raise Violation("a refused conversion left a file")
            return outcome

        yield f"{number}", judge


def training_states(rng: random.Random, folder: Path, count: int) -> Faults:
    """Damage to what `dgmn2 train` goes on from: refused, or exactly the state that was saved."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}}
    state = TrainState(9, STATE, {"state": moments, "param_groups": [{"params": [0], "lr": 0.1}]}, seed=5)
    data = save_state(folder / "good.pth", state, META).read_bytes()
    target = folder / "damaged.pth"

    def right(found: TrainState) -> bool:
        kept = all(torch.equal(found.optimizer["state"][0][name], value) for name, value in moments[0].items())
        return same(dict(found.weights)) and kept and (found.iteration, found.seed) == (9, 5)

    for number in range(count):
        damaged = rng.choice((flipped(data, rng), spliced(data, rng), data[: rng.randrange(len(data))]))

        def judge(damaged: bytes = damaged) -> str:
            target.write_bytes(damaged)
            return judged(lambda: load_state(target), {3, 7}, right)

        yield f"{number}", judge


def wrong_contents(rng: random.Random, folder: Path, count: int) -> Faults:
    """Whole files with the wrong tensors: missing, left over, of other shapes or types, NaN; none may load."""
    target = folder / "wrong.pth"
    for number in range(count):
        kind = rng.choice(("missing", "extra", "shape", "type", "nan", "complex", "not a tensor", "twice", "nothing"))
        seed = rng.randrange(1 << 30)

        def judge(kind: str = kind, seed: int = seed) -> str:
            torch.save({"meta": META, "state_dict": _wrong(kind, random.Random(seed))}, target)
            model = network()
            before = {key: value.clone() for key, value in model.state_dict().items()}
            outcome = judged(lambda: load_weights(model, read_checkpoint(target)), {3, 7}, lambda loaded: False)
            if not equal(model.state_dict(), before):
                raise Violation("a refused file changed the network")
            return outcome

        yield f"{number} {kind}", judge


def _wrong(kind: str, chance: random.Random) -> dict[str, object]:
    state: dict[str, object] = {key: value.clone() for key, value in STATE.items()}
    floats = [key for key, value in STATE.items() if value.is_floating_point()]
    key = chance.choice(floats)
    tensor = STATE[key].clone()
    if kind == "missing":
        del state[key]  # not the count of batches, which may be absent
    elif kind == "extra":
        state[chance.choice(("extra", "0.weights", "", "1.running_std", "\x1b[31m"))] = torch.ones(3)
    elif kind == "shape":
        state[key] = chance.choice((tensor.flatten()[:-1], tensor.unsqueeze(0), tensor[:0], torch.tensor(1.0)))
    elif kind == "type":
        state["1.num_batches_tracked"] = torch.tensor(chance.choice((1.0, True)), dtype=torch.float32)
    elif kind == "nan":
        value = chance.choice((float("nan"), float("inf"), float("-inf"), 1e300))
        tensor = tensor.to(torch.float64 if value == 1e300 else chance.choice((torch.float32, torch.float16)))
        tensor.flatten()[chance.randrange(tensor.numel())] = value
        state[key] = tensor
    elif kind == "complex":
        state[key] = tensor.to(torch.complex64)
    elif kind == "not a tensor":
        state[key] = chance.choice((1, "x", None, [tensor], {"a": tensor}, tensor.to_sparse()))
    elif kind == "twice":
        state[f"module.{key}"] = tensor + 1
    return {} if kind == "nothing" else state


KINDS = (
    Kind("model file, hash known", with_known_hash, 1500, 60),
    Kind("model file, hash not known", without_hash, 2000, 80),
    Kind("cached file and its note", in_the_cache, 800, 30),
    Kind("conversion of a damaged file", conversions, 500, 20),
    Kind("training state", training_states, 500, 20),
    Kind("wrong tensors", wrong_contents, 600, 40),
)
