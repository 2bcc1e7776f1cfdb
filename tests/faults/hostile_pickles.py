"""Hostile pickles: every instruction that calls, builds or names something, bombs for memory, time and stack."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from dgmn2cli.checkpoint.describe import describe
from dgmn2cli.checkpoint.weights import load_weights, read_checkpoint
from faults import canary
from faults.verdicts import Faults, Kind, Violation, judged

PROTO = b"\x80\x02"
FIRE = b"cfaults.canary\nfire\n"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def call(name: str, *arguments: bytes) -> bytes:
    """GLOBAL and REDUCE."""
    module, function = name.rsplit(".", 1)
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def storage(elements: int, key: str = "0", kind: str = "FloatStorage", place: str = "cpu") -> bytes:
    """A persistent id for a storage."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(place) + number(elements) + b"tQ"


def tensor(elements: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A tensor over a storage, of whatever shape."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(large(value) for value in values) + b"t"

    hooks = b"ccollections\nOrderedDict\n)R"
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(elements),
        large(offset),
        numbers(shape),
        numbers(stride),
        b"\x89",
        hooks,
    )


def large(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


CALLS = (
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.call", "builtins.eval", "builtins.exec",
    "builtins.compile", "builtins.open", "builtins.__import__", "builtins.getattr", "builtins.setattr", "builtins.type",
    "builtins.object", "builtins.globals", "builtins.breakpoint", "builtins.input", "io.open", "io.FileIO", "os.remove",
    "os.rename", "os.mkdir", "os.kill", "os._exit", "sys.exit", "shutil.rmtree", "socket.socket", "ctypes.CDLL",
    "importlib.import_module", "runpy.run_path", "webbrowser.open", "pickle.loads", "marshal.loads", "code.interact",
    "operator.attrgetter", "functools.partial", "types.FunctionType", "copyreg._reconstructor", "pathlib.Path",
    "numpy.load", "numpy.core.multiarray._reconstruct", "numpy.ndarray", "torch.load", "torch.hub.load",
    "torch.jit.load", "torch.utils.cpp_extension.load", "torch.serialization.add_safe_globals", "torch.nn.Module",
    "torch._C._set_worker_signal_handlers", "dgmn2cli.files.atomic_write", "dgmn2cli.checkpoint.standins.scalar",
    "dgmn2cli.cli.main", "faults.canary.fire", "timm.create_model", "cv2.imwrite", "__main__.x", "os.path.expanduser",
)  # fmt: skip


def programs() -> Iterator[tuple[str, bytes]]:
    """Hostile pickles by name, without the protocol's first and the last instruction."""
    for name in CALLS:
        yield f"call {name}", call(name, text("canary"))
    yield "call in a list", b"](" + FIRE + b")Re"
    yield "INST", b"(" + text("x") + b"ifaults.canary\nfire\n"
    yield "OBJ", b"(" + FIRE + text("x") + b"o"
    yield "NEWOBJ", b"cfaults.canary\nFire\n)\x81"
    yield "NEWOBJ_EX", b"cfaults.canary\nFire\n)}\x92"
    yield "STACK_GLOBAL", b"\x8c\x0dfaults.canary\x8c\x04fire\x93)R"
    yield "EXT1", b"\x82\x01)R"
    yield "EXT2", b"\x83\x01\x00)R"
    yield "EXT4", b"\x84\x01\x00\x00\x00)R"
    yield "BUILD on a class", b"cfaults.canary\nFire\n}" + text("x") + text("y") + b"sb"
    yield "BUILD on a call's result", FIRE + b")R}b"
    yield "PERSID", b"Pcanary\n"
    yield "BINPERSID of a text", text("canary") + b"Q"
    yield "BINPERSID of a module", b"(" + text("module") + FIRE + text("source") + text("x") + b"tQ"
    yield "BINPERSID of a number", number(7) + b"Q"
    yield "a storage on another device", storage(1, place="cuda:7")
    yield "a storage on no device", storage(1, place="nowhere")
    yield "a storage with a path", storage(1, key="../../../etc/passwd")
    yield "a storage that is not there", storage(1, key="99")
    yield "a storage of a function", b"(" + text("storage") + FIRE + text("0") + text("cpu") + number(1) + b"tQ"
    yield "NEXT_BUFFER", b"\x97"
    yield "FRAME", b"\x95" + struct.pack("<Q", 1 << 62)
    yield "getattr of a tensor's class", call("torch.Tensor.__reduce__", text("x"))
    yield "a name with dots", b"cbuiltins\neval.__call__\n(" + text("1") + b"tR"
    yield "a name of nothing", b"c\n\n)R"
    yield "a name in other letters", "c\u043es\nsystem\n".encode() + b"(" + text("x") + b"tR"
    yield "a long name", b"c" + b"a" * 100_000 + b"\nb\n)R"
    yield "memory: a huge tensor on one number", tensor(1, (1 << 40,), (0,))
    yield "memory: a huge tensor, two axes", tensor(1, (1 << 20, 1 << 20), (0, 0))
    yield "memory: a tensor beyond its storage", tensor(1, (4,), (1,))
    yield "memory: a negative offset", tensor(1, (1,), (1,), -5)
    yield "memory: a negative stride", tensor(1, (1,), (-1,))
    yield "memory: a bytearray", call("builtins.bytearray", large(1 << 33))
    yield "memory: a bytearray too large", call("builtins.bytearray", large(1 << 62))
    yield "memory: torch.Tensor", call("torch.Tensor", large(1 << 32))
    yield "memory: torch.FloatStorage", call("torch.FloatStorage", large(1 << 32))
    yield "memory: torch.DoubleTensor", call("torch.DoubleTensor", large(1 << 60))
    yield "memory: a text of 4 GB", b"X\xff\xff\xff\xffabc"
    yield "memory: a meta tensor", _meta_tensor()
    yield "time: a tuple of a tuple of a tuple", _doubled(b"\x86", 60) + b"}h\x3cNs"
    yield "time: in a set", call("builtins.set", b"(" + _doubled(b"\x86", 60) + b"t")
    yield "time: in an OrderedDict", call("collections.OrderedDict", b"((" + _doubled(b"\x86", 60) + b"Ntt")
    yield "time: lists of lists of lists", _doubled_lists(60)
    yield "stack: a million tuples", b")" + b"\x85" * 1_000_000 + b"q\x00}h\x00Ns"
    yield "stack: a million lists", b"]" * 300_000 + b"a" * 299_999
    yield "stack: a million dictionaries", (b"}K\x00" * 200_000) + b"N" + b"s" * 200_000
    yield "a list that holds itself", b"]q\x00h\x00a"
    yield "a dictionary that holds itself", b"}q\x00" + text("state_dict") + b"h\x00s"
    yield "a dictionary whose methods are data", _shadowed_dictionary()
    yield "a parameter whose methods are data", _shadowed_parameter()
    yield "a tensor set to something else", tensor(1, (1,), (1,)) + b"(Ntb"
    yield "a sparse tensor", call("torch._utils._rebuild_sparse_tensor", text("x"), b")")
    yield (
        "a wrapper subclass",
        call("torch._utils._rebuild_wrapper_subclass", FIRE, b")", b")", b"N", b"N", b"N", b"\x89"),
    )
    yield "another type", call("torch._tensor._rebuild_from_type_v2", FIRE, FIRE, b")", b"}")
    yield "half a surrogate pair", b"}" + text(b"\xed\xa0\x80") + tensor(1, (1,), (1,)) + b"s"
    yield "our own stand-in, misused", call("numpy.core.multiarray.scalar", text("x"), text("y"))
    yield "our own stand-in, its state", call("numpy.dtype", text("f8")) + b"(K\x03" + text("!") + b"tb"
    yield "our own stand-in, its type", call("numpy.dtype", text("O"))
    yield "our own stand-in, its codec", call("_codecs.encode", text("x"), text("rot13"))
    yield "a key that is a tensor", b"}" + tensor(1, (1,), (1,)) + b"Ns"
    yield "a number with 600 digits", b"}" + text("x") + b"\x8a\xff" + b"\x7f" * 255 + b"s"
    yield "an empty stack", b"R"
    yield "only a mark", b"("
    yield "a memo that is not there", b"h\x09"
    yield "an unknown instruction", b"\xff"
    yield "no end", b"N" * 50
    yield "text instructions", b"I99999999999\n"
    yield "another protocol", b"\x80\xff"


def _meta_tensor() -> bytes:
    shape = b"(" + large(1 << 40) + b"t"
    return call("torch._utils._rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n", shape, b"(K\x01t", b"\x89")


def _doubled(make: bytes, levels: int) -> bytes:
    """x = (x, x), again and again; in memo slot `levels` at the end."""
    program = b")q\x00"
    for level in range(1, levels + 1):
        program += b"h" + bytes([level - 1]) + make + b"q" + bytes([level])
    return program


def _doubled_lists(levels: int) -> bytes:
    program = b"]q\x00"
    for level in range(1, levels + 1):
        before = b"h" + bytes([level - 1])
        program += b"](" + before + before + b"eq" + bytes([level])
    return program


def _shadowed_dictionary() -> bytes:
    """An OrderedDict whose `items`, `get` and `keys` are numbers."""
    attributes = b"}" + b"".join(text(name) + b"K\x05s" for name in ("items", "get", "keys", "__iter__", "values"))
    inner = b"ccollections\nOrderedDict\n)R" + attributes + b"b"
    return inner + text("0.weight") + tensor(1, (1,), (1,)) + b"s"


def _shadowed_parameter() -> bytes:
    names = ("isfinite", "detach", "numel", "to", "is_floating_point", "untyped_storage", "contiguous", "__class__")
    state = b"}" + b"".join(text(name) + b"K\x05s" for name in names[:-1])
    hooks = b"ccollections\nOrderedDict\n)R"
    made = call("torch._utils._rebuild_parameter_with_state", tensor(1, (1,), (1,)), b"\x89", hooks, state)
    return b"}" + text("0.weight") + made + b"s"


PROGRAMS = dict(programs())
PLACES = {
    "whole": lambda program: program,
    "state_dict": lambda program: b"}(" + text("state_dict") + program + b"u",
    "meta": lambda program: b"}(" + text("state_dict") + b"}" + text("a") + tensor(1, (1,), (1,)) + b"s"
    + text("meta") + program + b"u",
    "optimizer": lambda program: b"}(" + text("state_dict") + b"}" + text("a") + tensor(1, (1,), (1,)) + b"s"
    + text("optimizer") + program + b"u",
    "a weight": lambda program: b"}(" + text("state_dict") + b"}" + text("a") + program + b"su",
}  # fmt: skip
CONTAINERS = ("archive", "legacy", "bare")


def file_of(container: str, program: bytes) -> bytes:
    """A whole file with this pickle in it."""
    pickled = PROTO + program + b"."
    if container == "archive":
        return archive(pickled)
    if container == "legacy":
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
        return b"".join(head) + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 1) + bytes(4)
    return pickled


def archive(pickled: bytes, extra: dict[str, bytes] | None = None, names: str = "archive") -> bytes:
    """A zip archive as torch.save writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{names}/data.pkl", pickled)
        file.writestr(f"{names}/byteorder", b"little")
        file.writestr(f"{names}/data/0", bytes(4))
        file.writestr(f"{names}/version", b"3\n")
        for name, content in (extra or {}).items():
            file.writestr(name, content)
    return buffer.getvalue()


def hostile(rng: random.Random, folder: Path, count: int) -> Faults:
    """Each program in each place of each container: refused with exit code 3 (or 7), nothing executed, or harmless."""
    every = [(name, place, container) for name in PROGRAMS for place in PLACES for container in CONTAINERS]
    rng.shuffle(every)
    every.sort(key=lambda item: item[1:] != ("meta", "archive"))  # every program at least once, however few are run
    target = folder / "hostile.pth"
    trace = folder / "trace"
    for index in range(count):
        name, place, container = every[index % len(every)]

        def judge(name: str = name, place: str = place, container: str = container) -> str:
            target.write_bytes(file_of(container, PLACES[place](PROGRAMS[name])))
            return read_everywhere(target, trace)

        yield f"{index} {name} as {place} in {container}", judge


def read_everywhere(target: Path, trace: Path) -> str:
    """Reads the file, describes it, and loads it into a network; whatever it holds, nothing of it may run."""
    canary.trace_to(trace)
    try:
        outcome = judged(lambda: read_checkpoint(target), {3, 7}, lambda read: True)
        if outcome == "right":
            judged(lambda: describe(target, ()), {3, 7}, lambda found: True)
            with torch.no_grad():
                judged(lambda: load_weights(torch.nn.Conv2d(3, 3, 1), read_checkpoint(target)), {3, 7}, lambda _: False)
    finally:
        fired = trace.exists()
        trace.unlink(missing_ok=True)
    if fired:
        raise Violation("code in the file was executed")
    return outcome


def archives(rng: random.Random, folder: Path, count: int) -> Faults:
    """Zip archives that say one thing and hold another."""
    good = PROTO + PLACES["meta"](b"N") + b"."
    hostile_one = PROTO + PLACES["meta"](call("faults.canary.fire", text("x"))) + b"."
    makers = {
        "two pickles": lambda: archive(good, {"archive/data.pkl": hostile_one}),
        "two pickles, the other way": lambda: archive(hostile_one, {"archive/data.pkl": good}),
        "another folder": lambda: archive(good, {"other/data.pkl": hostile_one}),
        "a path upward": lambda: archive(good, {"../../../evil": b"x"}),
        "an absolute path": lambda: archive(good, {"/etc/evil": b"x"}),
        "something before it": lambda: file_of("legacy", FIRE + b")R") + archive(good),
        "something behind it": lambda: archive(good) + rng.randbytes(100),
        "two archives": lambda: archive(good) + archive(hostile_one),
        "a bomb": lambda: _deflated(bytes(64 << 20)),
        "a bomb of bombs": lambda: _deflated(_deflated(bytes(64 << 20))),
        "no pickle": lambda: _deflated(good, "archive/other.pkl"),
        "an empty archive": lambda: b"PK\x05\x06" + bytes(18),
        "torchscript": lambda: archive(good, {"archive/constants.pkl": hostile_one, "archive/code/x.py": b"x"}),
        "a huge count": lambda: archive(good)[:-12] + b"\xff" * 12,
        "many parts": lambda: archive(good, {f"archive/data/{i}": b"" for i in range(1, 3000)}),
        "a comment": lambda: archive(good)[:-2] + b"\x05\x00" + b"PK\x05\x06!",
        "encrypted": lambda: archive(good).replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
        ),
        "bzip2": lambda: _deflated(good, "archive/data.pkl", zipfile.ZIP_BZIP2),
        "lzma": lambda: _deflated(good, "archive/data.pkl", zipfile.ZIP_LZMA),
    }  # fmt: skip
    target, trace = folder / "archive.pth", folder / "trace"
    for index in range(count):
        name = sorted(makers)[index % len(makers)]

        def judge(name: str = name) -> str:
            target.write_bytes(makers[name]())
            return read_everywhere(target, trace)

        yield f"{index} {name}", judge


def _deflated(content: bytes, name: str = "archive/data.pkl", kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        file.writestr(name, content)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def random_programs(rng: random.Random, folder: Path, count: int) -> Faults:
    """Pickles put together from random instructions and pieces of hostile ones."""
    pieces = [
        *PROGRAMS.values(),
        *(bytes([code]) for code in range(256)),
        b"(",
        b"t",
        b"R",
        b"b",
        b"s",
        b"Q",
        b"}",
        b")",
    ]
    pieces = [piece for piece in pieces if len(piece) < 2000]
    target, trace = folder / "random.pth", folder / "trace"
    for index in range(count):
        program = b"".join(rng.choice(pieces) for _ in range(rng.randint(1, 12)))
        place, container = rng.choice(sorted(PLACES)), rng.choice(CONTAINERS)

        def judge(program: bytes = program, place: str = place, container: str = container) -> str:
            target.write_bytes(file_of(container, PLACES[place](program)))
            return read_everywhere(target, trace)

        yield f"{index} as {place} in {container}", judge


KINDS = (
    Kind("hostile pickle", hostile, len(PROGRAMS) * len(PLACES) * len(CONTAINERS), len(PROGRAMS)),
    Kind("hostile archive", archives, 38, 19),
    Kind("random pickle instructions", random_programs, 1500, 60),
)
