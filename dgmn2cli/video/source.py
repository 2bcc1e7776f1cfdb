"""A video to read: what may be opened, what is refused before work begins, its frames with their times and sound."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from dgmn2cli.errors import ConfigError, DataError, NetworkError, first_line, is_exhaustion, require_installed, shown
from dgmn2cli.files import open_regular
from dgmn2cli.zoo.http import place_of

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Containers that hold what they show. Playlists (HLS, DASH, concat), SDP and image sequences name other files, and are
# not among them.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,ivf,gif,apng,yuv4mpegpipe"
# By scheme of a URL: what may be read, and over which protocols; no protocol among them reads files.
_HTTP = f"{CONTAINERS},hls", "http,https,tcp,tls,crypto"
_RTSP = "rtsp,sdp,rtp", "rtp,srtp,udp,tcp,tls,crypto"
SCHEMES = {"http": _HTTP, "https": _HTTP, "rtsp": _RTSP, "rtsps": _RTSP}
TIMEOUT = 10.0  # seconds that a stream may be silent
LATE = 5  # seconds of film after the end that are searched for the rest of the sound
SHORT = 0.25  # seconds by which a file may end before the time that it announces
_WHAT = "cannot read the video"


@dataclass(frozen=True)
class Span:
    """Which frames are wanted: times in seconds, `stop` excluded; of those each `every`-th, the first one included."""

    start: float | None = None
    stop: float | None = None
    every: int = 1

    @property
    def exact(self) -> tuple[Fraction, Fraction | float]:
        """Start and stop as the numbers that were meant, not the floats nearest to them."""
        stop = math.inf if self.stop is None else Fraction(str(self.stop))
        return Fraction(str(self.start or 0)), stop


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video."""

    name: str  # its file or URL, without password and query
    # width, height: as displayed, its rotation applied
    width: int
    height: int
    rotation: int  # degrees that were applied, counter-clockwise
    codec: str  # of its frames
    rate: float | None  # frames per second on average; None where it does not say
    frames: int | None  # frames in the span; of a stream None
    sounds: int  # sound tracks


@dataclass(frozen=True)
class Frame:
    """A frame: its time, its pixels, the sound read before it."""

    pts: int  # from the beginning of the span that was asked for, in units of `VideoSource.time_base`
    lasts: int  # until the next one, in the same units; 0 where that is not said
    time: float  # from the beginning of the video, in seconds
    image: np.ndarray = field(repr=False)  # (H, W, 3) uint8, blue green red, upright
    sound: list[Packet[AudioStream]] = field(repr=False)  # packets, timed like the frame


def scheme_of(name: str) -> str:
    """The scheme of a URL, or nothing for the name of a file."""
    return name.split("://", 1)[0].lower() if "://" in name and not os.path.lexists(name) else ""


@contextmanager
def _video_errors(name: str) -> Iterator[None]:
    """Turns what PyAV raises into an error that names the video."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        if is_exhaustion(error):
            raise
        if scheme_of(name):
            why, hint = first_line(error), "Check the address, and that it plays elsewhere."
            raise NetworkError(_WHAT, where=place_of(name), why=why.replace(name, place_of(name)), hint=hint) from error
        why = "it is cut, or no video of a kind that is read here"
        hint = "Images are for `dgmn2 infer`; playlists are not followed from files."
        raise DataError(_WHAT, where=name, why=why, hint=hint) from error


class VideoSource:
    """A video opened for reading; see `open_video`. It can be read once.

    Attributes:
        info: what is known of it.
        time_base: seconds per unit of its times.
        aspect: width of a pixel by its height.
        sounds: its sound tracks.
        damaged: frames that could not be decoded or had no time, so far.
        rest: sound that comes after the last frame, when that was read.
    """

    def __init__(
        self, name: str, container: InputContainer, span: Span, max_pixels: int, frames: int | None, sound: bool
    ) -> None:
        self._container, self.span, self._name = container, span, name
        self._stream = _video_stream(container, name)
        self.sounds = list(container.streams.audio) if sound else []
        self.time_base = self._stream.time_base or Fraction(1, 1000)
        self._zero = Fraction(container.start_time or 0, 1_000_000)
        self.damaged = 0
        self.rest: list[Packet[AudioStream]] = []
        self._sound: list[Packet[AudioStream]] = []
        _require_size(self._stream.codec_context.width, self._stream.codec_context.height, max_pixels, name)
        self._stream.codec_context.options = {"max_pixels": str(max_pixels)}  # where the frames are larger than said
        decoded = self._decoded()
        with _video_errors(name):
            start = next(decoded, None)
        if start is None:
            raise DataError(_WHAT, where=place(name), why="there is no frame in it that can be decoded")
        self._all, first = chain([start], decoded), start[1]
        height, width = _upright(first).shape[:2]
        self._size = first.width, first.height
        _require_size(width, height, max_pixels, name)
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.aspect = 1 / aspect if first.rotation % 180 else aspect
        rate = self._stream.average_rate or self._stream.guessed_rate
        known = None if frames is None else -(-frames // span.every)
        codec, speed = self._stream.codec_context.name, float(rate) if rate else None
        self.info = VideoInfo(place(name), width, height, first.rotation, codec, speed, known, len(self.sounds))

    def frames(self) -> Generator[Frame, None, None]:
        """The wanted frames.

        Raises:
            DataError: the frames' size changes.
            NetworkError: a stream broke off.
        """
        shift, last, count = self._zero + self.span.exact[0], -1, 0
        with _video_errors(self._name):
            for stamp, frame in self._all:
                pts, time = stamp - round(shift / self.time_base), float(self._time(stamp, self.time_base))
                if (frame.width, frame.height) != self._size:
                    why = f"its size changes from {self._size[0]}x{self._size[1]} to {frame.width}x{frame.height}"
                    hint = f"Take the part before with --to {time:g}."
                    raise DataError(_WHAT, where=place(self._name), why=why, hint=hint)
                if pts <= last:
                    self.damaged += 1
                    continue
                last, count = pts, count + 1
                if (count - 1) % self.span.every:
                    continue
                sound, self._sound = self._sound, []
                yield Frame(pts, (frame.duration or 0) * self.span.every, time, _upright(frame), sound)
        self.rest = self._sound

    def _time(self, pts: int, base: Fraction) -> Fraction:
        """Seconds from the video's beginning."""
        return pts * base - self._zero

    def _decoded(self) -> Generator[tuple[int, VideoFrame], None, None]:
        """Frames of the span with their stamps; what comes between them of the sound goes to `_sound`."""
        import av

        start, stop = self.span.exact
        if start:
            self._container.seek(int((start + self._zero) * 1_000_000))
        over = set[int]()
        for packet in self._container.demux([self._stream, *self.sounds]):
            base = packet.time_base or self.time_base
            time = None if packet.pts is None else self._time(packet.pts, base)
            if packet.stream.index != self._stream.index:
                if time is not None and time >= stop:
                    over.add(packet.stream.index)
                elif time is not None and packet.size:
                    self._hear(packet, base)
                continue
            try:
                frames = [] if self._stream.index in over else self._stream.decode(packet)
            except av.error.InvalidDataError:
                self.damaged += 1
                continue
            for frame in frames:
                stamp = frame.dts if frame.pts is None else frame.pts
                if stamp is None:
                    self.damaged += 1
                elif self._time(stamp, base) >= stop:
                    over.add(self._stream.index)
                elif self._time(stamp, base) >= start:
                    yield stamp, frame
            if len(over) > len(self.sounds) or (time is not None and time > stop + LATE):
                return

    def _hear(self, packet: Packet[Any], base: Fraction) -> None:
        """Keeps a packet of sound, timed from the span's beginning."""
        assert packet.pts is not None
        shift = round((self._zero + self.span.exact[0]) / base)
        if self.span.start is not None and packet.pts < shift:
            return
        packet.pts -= shift
        packet.dts = packet.pts if packet.dts is None else packet.dts - shift
        self._sound.append(packet)


def place(name: str) -> str:
    """How messages and reports call a video: a URL without its password and query."""
    return place_of(name) if scheme_of(name) else name


@contextmanager
def open_video(
    name: str, span: Span, max_pixels: int, *, sound: bool = True, offline: bool = False
) -> Iterator[VideoSource]:
    """A video file or stream, opened, with all checks that need no network done.

    A file is read through once before, without decoding: what is cut is refused then, and frames are counted.

    Args:
        name: a regular file, or a URL with one of `SCHEMES`.
        offline: refuse URLs.

    Raises:
        ConfigError: a URL that is not allowed, or no frame is in the span.
        DataError: no video, a cut one, one without frames or with too large ones.
        NetworkError: a stream cannot be opened.
        ResourceError: PyAV is missing.
    """
    require_installed("video", "av")
    import av

    av.logging.set_level(None)
    if span.stop is not None and span.stop <= (span.start or 0):
        raise ConfigError("no time is left", why=f"from {span.start or 0:g} s to {span.stop:g} s", hint="Correct --to.")
    frames, scheme = None, scheme_of(name)
    with ExitStack() as stack:
        if scheme:
            if scheme not in SCHEMES:
                wanted = f"wanted a file, or a URL with {', '.join(SCHEMES)}"
                raise ConfigError("this kind of URL is not opened", where=shown(scheme), why=wanted)
            if offline:
                hint = "Leave --offline away, or name a file."
                raise NetworkError(_WHAT, where=place(name), why="--offline is given", hint=hint)
            formats, protocols = SCHEMES[scheme]
            where: Any = name
        else:
            hint = "Give a video file, or a URL."
            where = stack.enter_context(open_regular(name, _WHAT, kind=DataError, unreadable=DataError, hint=hint))
            formats, protocols = CONTAINERS, "none"
        # tags in Latin-1 are read so by PyAV 19 and later, which has no such argument
        decoding: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        options = {"protocol_whitelist": protocols, "format_whitelist": formats, "max_pixels": str(max_pixels)}
        if scheme.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"

        def opened() -> InputContainer:
            with _video_errors(name):
                found = av.open(where, options=options, timeout=TIMEOUT, **decoding)
                return stack.enter_context(closing(found))

        if not scheme:
            frames = _looked_through(opened(), span, name)
            where.seek(0)
        container = opened()
        yield VideoSource(name, container, span, max_pixels, frames, sound)


def _looked_through(container: InputContainer, span: Span, name: str) -> int:
    """How many frames the span of a file has, counted without decoding.

    Raises:
        ConfigError: none, because it ends before.
        DataError: no video stream or frame, or the file is cut.
    """
    stream, zero = _video_stream(container, name), Fraction(container.start_time or 0, 1_000_000)
    start, stop = span.exact
    counted, inside, end, ends = 0, 0, 0.0, 0.0
    with _video_errors(name):
        for packet in container.demux():
            pts = packet.dts if packet.pts is None else packet.pts
            if pts is None or not packet.size or packet.time_base is None:
                continue
            time = pts * packet.time_base - zero
            ends = max(ends, float(time + (packet.duration or 0) * packet.time_base))
            if packet.stream.index == stream.index:
                counted, end = counted + 1, max(end, float(time))
                inside += start <= time < stop and not packet.is_discard  # an edit list may leave frames out
    if not counted:
        raise DataError(_WHAT, where=name, why="its video stream has no frame")
    announced = (container.duration or 0) / 1_000_000
    if stop > ends and (ends < announced - SHORT or counted < stream.frames):
        seen = f"{counted} of {stream.frames} frames are there" if stream.frames else f"it ends after {ends:.2f} s"
        hint = f"Fetch or export it again, or take what is there with --to {end:.2f}."
        raise DataError(_WHAT, where=name, why=f"it is cut: {seen}, and it announces {announced:.2f} s", hint=hint)
    if not inside:
        why = f"its last frame is at {end:.2f} s"
        raise ConfigError("no frame is in the wanted time", where=name, why=why, hint="Correct --from and --to.")
    return inside


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first video stream that is no cover image."""
    import av

    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context is not None:
            return stream
    kinds = ", ".join(stream.type for stream in container.streams)
    raise DataError(_WHAT, where=place(name), why=f"it has no video stream{f', only {kinds}' if kinds else ''}")


def _require_size(width: int, height: int, max_pixels: int, name: str) -> None:
    if not 0 < width * height <= max_pixels:  # FFmpeg says 0 for what is more than it was allowed
        seen = f"its frames have {width}x{height} pixels" if width else "its frames' size is not known, or too large"
        why = f"{seen}, wanted {max_pixels:,} pixels at most"
        raise DataError(_WHAT, where=place(name), why=why, hint="Raise --max-pixels if that is meant.")


def _upright(frame: VideoFrame) -> np.ndarray:
    """The frame's pixels (H, W, 3) uint8, blue green red, turned as its flag says."""
    pixels = frame.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
