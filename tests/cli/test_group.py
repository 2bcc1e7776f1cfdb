"""The `dgmn2` command as a user meets it: quick help, global options anywhere, quiet ends of pipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import dgmn2cli
from dgmn2cli import zoo as zoo_api
from dgmn2cli.cli import COMMANDS, FIRST_STEPS, dgmn2, main
from dgmn2cli.cli.options import (
    DEVICE,
    SIZE,
    RunOptions,
    Session,
    attach_global_options,
    model_argument,
    pass_session,
    with_run,
)

ROOT = Path(dgmn2cli.__file__).parents[1]


def run(*arguments, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    for name in settings.pop("without", ()):
        environment.pop(name, None)
    command = [sys.executable, "-m", "dgmn2cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **settings)


def call(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


IMPORTS = """
import sys
from dgmn2cli.cli import main
code = main(sys.argv[1:])
light = ["pydantic", "rich"] if sys.argv[1:] == ["--help"] else []
heavy = [name for name in ("torch", "numpy", "cv2", "timm", "requests", "gdown", *light) if name in sys.modules]
sys.exit(f"imported {heavy} of {len(sys.modules)} modules" if heavy or len(sys.modules) > 400 else code)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["zoo", "list"], ["zoo", "show", "fpn-tiny"], ["zoo", "--help"]],
)
def test_help_and_lists_load_little(arguments):
    """Loading modules is what they spend their time on: some 150 and 320 of them (torch alone is over 1,000)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command_without_importing_it(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "zoo" in COMMANDS
    for name, (_, text) in COMMANDS.items():
        assert name in out
        assert text.split()[0] in out
    code, first, _ = call(capsys)
    assert code == 0
    assert len(FIRST_STEPS) == 5
    for command, _ in FIRST_STEPS:
        assert f"  {command} " in first
        assert command.split()[1] in COMMANDS
    assert max(map(len, first.splitlines())) <= 80


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_in_the_table_exists_and_takes_the_global_options(capsys, name):
    context = click.Context(dgmn2)
    command = dgmn2.get_command(context, name)
    assert isinstance(command, click.Command)
    code, out, err = call(capsys, name, "--help", "--json", "--offline")
    assert (code, err) == (0, "")
    assert f"dgmn2 {name}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "no such command (nosuch). See `dgmn2 --help`."),
        (["zo"], "no such command (zo). Did you mean `dgmn2 zoo`?"),
        (["x\x1b[2J" * 99], "no such command (x\\x1b[2J"),
        (["zoo", "x" * 10_000], "no such command 'xxx"),
        (["zoo", "list", "--foo"], "no such option '--foo' (dgmn2 zoo list)."),
        (["zoo", "list", "a", "b"], "got unexpected extra argument (b) (dgmn2 zoo list). See `dgmn2 zoo list --help`."),
        (["zoo", "list", "nothing"], "no model matches (nothing)."),
        (["zoo", "show", "../../x"], "no such model (../../x)."),
        (
            ["--zoo", "/dev/null", "zoo", "list"],
            "cannot use the zoo manifest (/dev/null): it is a pipe, socket or device, wanted a file.",
        ),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(capsys, arguments, said):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {said}")
    assert (err.count("\n"), len(err) < 1000) == (1, True)


def test_json_stands_anywhere_and_is_alone_on_stdout(capsys):
    variants = [
        ("--json", "zoo", "list"),
        ("zoo", "--json", "list"),
        ("zoo", "list", "--json"),
        ("zoo", "list", "--json", "-v"),
    ]
    documents = [json.loads(call(capsys, *arguments)[1]) for arguments in variants]
    assert len(documents) == 4
    assert all(document == documents[0] for document in documents)
    assert len(documents[0]["models"]) == 16
    assert documents[0]["default"] == "setr_pup-tiny"


def test_the_command_lines_cache_overrules_the_environments(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path / "env"))
    for arguments in (["--cache", "C", "zoo", "list", "--json"], ["zoo", "list", "--json", "--cache", "C"]):
        assert json.loads(call(capsys, *arguments)[1])["cache"] == str(Path("C").absolute())
    assert json.loads(call(capsys, "zoo", "list", "--json")[1])["cache"] == str(tmp_path / "env")


def test_list_has_every_key_whole_at_80_columns_and_in_a_pipe(capsys, monkeypatch):
    keys = [entry.key for entry in zoo_api.entries()]
    code, out, err = call(capsys, "zoo", "list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.split()[0] in keys] == keys
    assert max(map(len, out.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_show_names_what_there_is_to_know(capsys):
    code, out, _ = call(capsys, "zoo", "show", "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes.py")
    assert code == 0
    for fact in (
        "setr_pup-tiny",
        "78.25",
        "79.26",
        "13,954,947",
        "Apache-2.0",
        "1Fz_VgIDvX7WcrEJcdYiB85KWOUGz7qPC",
        "unknown",
    ):
        assert fact in out
    assert call(capsys, "zoo", "show")[1] == out
    assert "12,101,464" in call(capsys, "zoo", "show", "dgmn2_tiny")[1]


def test_another_manifest(capsys, tmp_path):
    document = json.loads((ROOT / "zoo.json").read_text())
    document["segmentors"] = document["segmentors"][:1]
    document["default"] = "fpn-tiny"
    (tmp_path / "mine.json").write_text(json.dumps(document))
    shown = json.loads(call(capsys, "zoo", "list", "--json", "--zoo", str(tmp_path / "mine.json"))[1])
    assert [model["key"] for model in shown["models"]] == ["fpn-tiny"]


@pytest.mark.parametrize("arguments", [["zoo", "list"], ["zoo", "list", "--json"], ["--help"], ["--version"]])
def test_a_full_device_is_an_error(arguments):
    command = [sys.executable, "-m", "dgmn2cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert done.returncode == 5
    assert done.stderr == "Error: cannot read or write (standard output): No space left on device. Free some space.\n"


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&-", "| head -c 1 >/dev/null", "2>/dev/full"])
def test_closed_streams_are_quiet(redirect):
    line = f"{sys.executable} -m dgmn2cli zoo list {redirect}; true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == ""


def test_a_reader_that_left_ends_the_command_quietly():
    endless = "while True: print('x' * 100)"
    many = f"import sys\nfrom dgmn2cli.cli.boundary import guarded\ndef run():\n    {endless}\nsys.exit(guarded(run))"
    script = f'{sys.executable} -c "$MANY" | head -1; echo ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MANY": many}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.splitlines()[1] == "141"
    assert done.stderr == ""


def test_a_bare_environment_is_enough():
    without = ("HOME", "LANG", "LC_ALL", "TERM", "DGMN2_CACHE", "XDG_CACHE_HOME")
    done = run("zoo", "list", without=without, env={"LANG": "C"})
    assert (done.returncode, done.stderr) == (0, "")
    done = run(
        "zoo", "list", "h\u00e9", without=without, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: no model matches (h")
    assert done.stderr.isascii()


def probe(*decorators):
    """A command that tells what it was given."""
    seen = {}

    def body(session, **kwargs):
        seen.update(kwargs, session=session)

    command = pass_session(body)
    for decorator in reversed(decorators):
        command = decorator(command)
    return attach_global_options(click.command("probe")(command)), seen


def test_model_argument_and_option(monkeypatch):
    monkeypatch.delenv("DGMN2_MODEL", raising=False)
    cases = [
        ([], "setr_pup-tiny"), (["fpn-tiny"], "fpn-tiny"), (["-m", "fpn-large"], "fpn-large"), (["--model=x"], "x"),
        (["fpn-tiny", "-m", "fpn-tiny"], "fpn-tiny"), ([""], ""),
    ]  # fmt: skip
    for arguments, model in cases:
        command, seen = probe(model_argument)
        command.main(arguments, standalone_mode=False)
        assert seen["model"] == model
    monkeypatch.setenv("DGMN2_MODEL", "setr_mla-tiny")
    for arguments, model in [([], "setr_mla-tiny"), (["fpn-tiny"], "fpn-tiny"), (["-m", "fpn-large"], "fpn-large")]:
        command, seen = probe(model_argument)
        command.main(arguments, standalone_mode=False)
        assert seen["model"] == model
    command, _ = probe(model_argument)
    with pytest.raises(click.UsageError, match="named twice"):
        command.main(["fpn-tiny", "-m", "fpn-large"], standalone_mode=False)


def test_run_options():
    command, seen = probe(with_run)
    command.main([], standalone_mode=False)
    session = seen.pop("session")
    assert seen == {"run": RunOptions("auto", "float32", "auto", None, compiled=False)}
    assert session == Session(cache=session.cache, offline=session.offline)
    line = "--device CUDA:1 --dtype bfloat16 --backend native --threads 2 --compile --json -vv --debug"
    command.main(line.split(), standalone_mode=False)
    session = seen.pop("session")
    assert seen == {"run": RunOptions("cuda:1", "bfloat16", "native", 2, compiled=True)}
    assert (session.json, session.verbose, session.debug, session.quiet) == (True, 2, True, False)
    for wrong in ("--device=tpu", "--device=cuda:x", "--dtype=int8", "--backend=fast", "--threads=0"):
        with pytest.raises(click.BadParameter):
            command.main([wrong], standalone_mode=False)


def test_sizes_and_devices():
    assert SIZE.convert("2049x1025", None, None) == (2049, 1025)
    assert SIZE.convert("1X5000", None, None) == (1, 5000)
    for wrong in ("", "0x5", "5", "x", "5x", "-1x5", "1.5x2", "999999x1", "\u0665x5"):
        with pytest.raises(click.BadParameter, match="WIDTHxHEIGHT"):
            SIZE.convert(wrong, None, None)
    assert DEVICE.convert("cuda", None, None) == "cuda"


def test_completion_offers_commands_and_models():
    for words, position, wanted in [("dgmn2 zo", 1, "zoo"), ("dgmn2 zoo show setr_pup-t", 3, "setr_pup-tiny")]:
        settings = {"_DGMN2_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        done = run(env=settings)
        assert wanted in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_threads_do_not_hold_their_cores_for_long(given: dict[str, str], used: str) -> None:
    """Set before torch is there to read it, and only where the user has not chosen."""
    code = "import os, sys; from dgmn2cli.cli import main; main(['--version']); "
    code += "assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={**environment, "PYTHONPATH": str(ROOT), **given},
    )  # fmt: skip
    assert done.stdout.split()[-1] == used
