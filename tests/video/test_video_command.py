"""`dgmn2 video` as a user meets it: answers, bad input with its message and exit code, streams, what is never read."""

from __future__ import annotations

import functools
import json
import resource
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
import av
from clips import clip, label, read, read_ids, segmenter, write_clip

from dgmn2cli.cli import main
from dgmn2cli.data.images import write_png
from dgmn2cli.inference.load import Recipe

Run = Callable[..., tuple[int, str, str]]
PLAIN = ("--protocol", "native", "--window", "64")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command with the drawn clips' network in place of a model of the zoo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Recipe, "__call__", lambda *_, **__: segmenter())
    write_clip(tmp_path / "clip.mp4", clip(10), sound="aac")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["video", *PLAIN, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_summary_names_files_windows_and_steadiness(run: Run, tmp_path: Path) -> None:
    code, out, err = run("clip.mp4", "-o", "out.mp4", "--save", "overlay,ids,jsonl", "--metrics", "--smooth", "0.5")
    assert (code, err) == (0, "")
    for fact in ("out.mp4", "out_ids.mkv", "out.jsonl", "10 frames of 96x64", "20 windows", "TC ", "VC8", "VC16 -"):
        assert fact in out
    code, out, _ = run("clip.mp4", "-o", "out.mp4", "--json", "--overwrite", "--every", "5")
    report = json.loads(out)
    assert (code, report["frames"], report["windows"], report["steadiness"]) == (0, 2, 4, None)
    assert report["video"] | {"name": "", "codec": ""} == {
        "name": "", "width": 96, "height": 64, "rotation": 0, "codec": "", "rate": 25.0, "frames": 2, "sounds": 1,
    }  # fmt: skip
    assert report["outputs"] == {"overlay": "out.mp4"}


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def sound_only(path: Path) -> None:
    with av.open(path, "w", format="mp4") as film:
        tone: Any = film.add_stream("aac", rate=16000)
        tone.layout = "mono"
        made = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        made.rate, made.pts = 16000, 0
        film.mux(tone.encode(made))
        film.mux(tone.encode(None))


def no_frames(path: Path) -> None:
    with av.open(path, "w", format="avi") as film:
        stream: Any = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        film.start_encoding()


def cut_at(share: float, name: str = "clip.mp4") -> Callable[[Path], object]:
    def make(path: Path) -> None:
        data = (path.parent / name).read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return make


def streamable(path: Path, share: float = 1.0) -> None:
    """The clip with its index in front, and of it a share."""
    with av.open(path.parent / "clip.mp4") as film, av.open(path, "w", "mp4", {"movflags": "faststart"}) as other:
        streams = [other.add_stream_from_template(stream) for stream in film.streams]
        for packet in film.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                other.mux(packet)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def cut_matroska(path: Path) -> None:
    whole = write_clip(path.with_name("whole.mkv"), clip(40, 8), exact=True).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


GIF_BOMB = (
    b"GIF89a" + struct.pack("<HHBBB", 12000, 12000, 0, 0, 0) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 12000, 12000, 0)
)
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (text(b""), "no video"),
    "text": (text(b"this is no video\n" * 50), "no video"),
    "noise": (text(np.random.default_rng(0).bytes(5000)), "no video"),
    "png": (lambda path: write_png(path, np.zeros((40, 40, 3), np.uint8)), "dgmn2 infer"),
    "cut index": (cut_at(0.4), "cut"),
    "cut end": (lambda path: streamable(path, 0.6), "10 frames"),
    "cut matroska": (cut_matroska, "cut"),
    "sound only": (sound_only, "no video stream"),
    "no frame": (no_frames, "no frame"),
    "bomb": (text(GIF_BOMB + b"\x08\x00;"), "100,000,000"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "playlist": (text(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n"), "no video"),
    "concat": (text(b"ffconcat version 1.0\nfile clip.mp4\n"), "no video"),
    "session": (text(b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 9 RTP/AVP 96\n"), "no video"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_whole_video_are_refused(run: Run, tmp_path: Path, kind: str) -> None:
    make, said = FILES[kind]
    make(tmp_path / "bad.mp4")
    code, out, err = run("bad.mp4", "-o", "out.mp4")
    assert (code, out) == (6, "")
    assert said in err
    assert err.count("\n") == 1
    assert "bad.mp4" in err
    assert not list(tmp_path.glob("*out*"))


WRONG = {
    "no output": (2, ["clip.mp4"]),
    "no such file": (6, ["nothing.mp4", "-o", "out.mp4"]),
    "empty name": (6, ["", "-o", "out.mp4"]),
    "suffix": (2, ["clip.mp4", "-o", "out.avi"]),
    "no suffix": (2, ["clip.mp4", "-o", "out"]),
    "input": (2, ["clip.mp4", "-o", "clip.mp4", "--overwrite"]),
    "input by another name": (2, ["clip.mp4", "-o", "../{folder}/clip.mp4", "--overwrite"]),
    "there already": (2, ["clip.mp4", "-o", "there.mp4"]),
    "folder": (5, ["clip.mp4", "-o", "folder.mp4", "--overwrite"]),
    "kind": (2, ["clip.mp4", "-o", "out.mp4", "--save", "color"]),
    "no kind": (2, ["clip.mp4", "-o", "out.mp4", "--save", ","]),
    "from after the end": (2, ["clip.mp4", "-o", "out.mp4", "--from", "5"]),
    "to before from": (2, ["clip.mp4", "-o", "out.mp4", "--from", "0.3", "--to", "0.2"]),
    "time": (2, ["clip.mp4", "-o", "out.mp4", "--from", "1:99"]),
    "negative time": (2, ["clip.mp4", "-o", "out.mp4", "--to", "-1"]),
    "every": (2, ["clip.mp4", "-o", "out.mp4", "--every", "0"]),
    "every, more than a number holds": (2, ["clip.mp4", "-o", "out.mp4", "--every", f"1{20 * '0'}"]),
    "smooth": (2, ["clip.mp4", "-o", "out.mp4", "--smooth", "1"]),
    "smooth nan": (2, ["clip.mp4", "-o", "out.mp4", "--smooth", "nan"]),
    "alpha": (2, ["clip.mp4", "-o", "out.mp4", "--alpha", "2"]),
    "too large": (6, ["clip.mp4", "-o", "out.mp4", "--max-pixels", "6143"]),
    "memory": (5, ["clip.mp4", "-o", "out.mp4", "--max-memory", "10M"]),
    "file url": (2, ["file://{folder}/clip.mp4", "-o", "out.mp4"]),
    "concat url": (2, ["concat://clip.mp4", "-o", "out.mp4"]),
    "pipe url": (2, ["PIPE://0", "-o", "out.mp4"]),
    "nobody there": (4, ["http://127.0.0.1:9/clip.mp4", "-o", "out.mp4"]),
    "nobody there, rtsp": (4, ["rtsp://127.0.0.1:9/clip", "-o", "out.mp4"]),
    "no url": (4, ["http://[/clip.mp4?token=secret", "-o", "out.mp4"]),
    "offline": (4, ["http://127.0.0.1:9/clip.mp4", "-o", "out.mp4", "--offline"]),
    "window": (2, ["clip.mp4", "-o", "out.mp4", "--window", "32", "--stride", "33"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_bad_input_is_one_line_and_an_exit_code(run: Run, tmp_path: Path, kind: str) -> None:
    wanted, arguments = WRONG[kind]
    (tmp_path / "there.mp4").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    code, out, err = run(*(argument.format(folder=tmp_path.name) for argument in arguments))
    assert (code, out) == (wanted, "")
    assert err.startswith("Error: ") or kind == "memory"  # where the plan's note comes first
    assert err.strip().count("\n") <= (kind == "memory")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_cut_video_can_be_taken_as_far_as_it_goes(run: Run, tmp_path: Path) -> None:
    streamable(tmp_path / "bad.mp4", 0.6)
    code, _, err = run("bad.mp4", "-o", "out.mp4")
    assert code == 6
    end = err.split("--to ")[1].split()[0].rstrip(".")
    code, out, _ = run("bad.mp4", "-o", "out.mp4", "--to", end, "--json")
    assert code == 0
    assert 0 < json.loads(out)["frames"] <= round(float(end) / 0.04)  # less where a frame needs one that is missing


def test_tags_that_are_no_text_do_not_matter(run: Run, tmp_path: Path) -> None:
    """Cameras and editors write them in Latin-1."""
    film = (tmp_path / "clip.mp4").read_bytes()
    assert b"VideoHandler" in film
    (tmp_path / "latin.mp4").write_bytes(film.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    code, out, _ = run("latin.mp4", "-o", "out.mp4", "--json")
    assert (code, json.loads(out)["frames"]) == (0, 10)


def test_a_changing_size_is_an_error_at_its_time(run: Run, tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / "a.ts", clip(5)), write_clip(tmp_path / "b.ts", clip(5, size=(80, 96)))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    code, _, err = run("both.ts", "-o", "out.mp4")
    assert code == 6
    assert "96x64" in err
    assert not (tmp_path / "out.mp4").exists()


def test_sound_that_a_container_does_not_take_is_refused_early(run: Run, tmp_path: Path) -> None:
    write_clip(tmp_path / "pcm.mkv", clip(5), sound="wavpack")
    code, _, err = run("pcm.mkv", "-o", "out.mp4")
    assert code == 2
    assert "--no-audio" in err
    assert run("pcm.mkv", "-o", "out.mkv")[0] == 0
    assert run("pcm.mkv", "-o", "out.mp4", "--no-audio")[0] == 0
    with av.open(tmp_path / "out.mp4") as film:
        assert [stream.type for stream in film.streams] == ["video"]


def test_a_size_that_no_encoder_takes_is_refused_before_the_network_is_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "thin.mp4", [frame[:, :2] for frame in clip(2)])
    monkeypatch.setattr("dgmn2cli.video.source._upright", lambda frame: frame.to_ndarray(format="bgr24")[:, :1])
    monkeypatch.setattr(Recipe, "__call__", lambda *_, **__: pytest.fail("the network was made"))
    code, _, err = run("thin.mp4", "-o", "out.mp4", "--save", "ids")
    assert (code, "1x64" in err, "sound" in err, "--save" in err) == (2, True, False, True)


def test_an_outputs_full_disk_is_said_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    write_clip(tmp_path / "long.mp4", clip(80, 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, _, err = run("long.mp4", "-o", "out.mp4", "--save", "overlay,ids")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 5
    assert "out" in err
    assert not list(tmp_path.glob("*out*"))


def test_without_pyav_the_error_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("dgmn2cli.errors.find_spec", lambda _: None)
    code, _, err = run("clip.mp4", "-o", "out.mp4")
    assert code == 5
    assert "dgmn2cli[video]" in err


def test_infer_points_to_video(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.mkv", "clip.avi"):
        if not Path(name).exists():
            write_clip(tmp_path / name, clip(3), exact=True)
        assert main(["infer", name]) == 6
        assert "dgmn2 video" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An HTTP server of the test's folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


def test_a_stream_is_read_and_its_password_is_not_shown(run: Run, server: str, tmp_path: Path) -> None:
    streamable(tmp_path / "film.mp4")
    write_clip(tmp_path / "exact.mkv", clip(10), exact=True)
    host = server.removeprefix("http://")
    code, out, err = run(f"http://me:secret@{host}/exact.mkv?key=hidden", "-o", "out.mp4", "--save", "ids", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["video"]["frames"] is None
    assert "secret" not in out + err
    assert "hidden" not in out + err
    for number, found in enumerate(read_ids(tmp_path / "out_ids.mkv")):
        np.testing.assert_array_equal(found, label(number))
    assert run(f"{server}/film.mp4", "-o", "film_out.mp4", "--to", "0.2")[0] == 0
    assert len(read(tmp_path / "film_out.mp4")[0]) == 5
    code, _, err = run(f"http://me:secret@{host}/nothing.mp4?key=hidden", "-o", "other.mp4")
    assert code == 4
    assert "404" in err
    assert "secret" not in err
    assert "hidden" not in err


def test_a_playlist_may_name_streams_but_no_files(run: Run, server: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "part.ts", clip(10))
    for name, part in (("good", "part.ts"), ("bad", f"file://{tmp_path}/part.ts"), ("worse", f"{tmp_path}/part.ts")):
        lines = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-VERSION:3\n#EXTINF:0.4,\n{}\n#EXT-X-ENDLIST\n"
        (tmp_path / f"{name}.m3u8").write_text(lines.format(part))
    assert run(f"{server}/good.m3u8", "-o", "out.mp4")[0] == 0
    assert len(read(tmp_path / "out.mp4")[0]) == 10
    for name in ("bad", "worse"):
        code, _, _ = run(f"{server}/{name}.m3u8", "-o", "other.mp4")
        assert code == 4
        assert not (tmp_path / "other.mp4").exists()
