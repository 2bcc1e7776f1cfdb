"""Films that are written: H.264 to look at, FFV1 for class ids, each with the times of the video it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, cast

import cv2
import numpy as np

from dgmn2cli.errors import ConfigError, ResourceError, first_line

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Each encoder with its settings: H.264 where there is one. A short look ahead bounds the memory.
ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "libopenh264": {"allow_skip_frames": "0"},
    "mpeg4": {"qscale": "3", "flags": "+qscale"},
}
_BT709 = 1  # FFmpeg's number for that standard of colours
_VIDEO_RANGE = 1  # and for values from 16 to 235


def encoder() -> str:
    """The first of `ENCODERS` that this PyAV has.

    Raises:
        ResourceError: it has none.
    """
    import av

    for name in ENCODERS:
        if name in av.codecs_available:
            return name
    why = f"this PyAV has none of {', '.join(ENCODERS)}"
    raise ResourceError(
        "no film can be encoded", why=why, hint="Install PyAV from PyPI, or leave overlay out of --save."
    )


class Film:
    """A film that grows in an open file.

    Args:
        file: where it goes; it can be sought in.
        container: a value of `FORMATS`.
        size: (width, height) of the frames; with colours, sides are made even by repeating the last row or column.
        time_base: seconds per unit of the times given.
        rate: frames per second, as a word to players; None if not known.
        ids: frames are class ids, and are kept as they are; else images.
        aspect: width of a pixel by its height.
        sounds: sound tracks to copy.

    Raises:
        ConfigError: the container does not take that sound, or the encoder that size.
        ResourceError: no encoder.
    """

    def __init__(
        self,
        file: BinaryIO,
        container: str,
        size: tuple[int, int],
        time_base: Fraction,
        rate: float | None,
        *,
        ids: bool = False,
        aspect: Fraction = Fraction(1),
        sounds: Sequence[AudioStream] = (),
    ) -> None:
        import av

        codec = "ffv1" if ids else encoder()
        self._container = av.open(file, "w", format=container)
        # coders begin sound before the first frame; Matroska would move all times for that
        self._earliest = 0 if container == "matroska" else -math.inf
        fps = Fraction(rate).limit_denominator(1001) if rate else Fraction(25)
        self._stream = cast("VideoStream", self._container.add_stream(codec, rate=fps))
        self._ids, self._time_base = ids, time_base
        self._lasts: dict[int, int] = {}
        self._heard: dict[int, int] = {}  # the time of each sound track's last packet
        width, height = size
        self._stream.width, self._stream.height = (width, height) if ids else (width + width % 2, height + height % 2)
        self._stream.pix_fmt = "gray" if ids else "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = time_base
        context = self._stream.codec_context
        context.sample_aspect_ratio = aspect or Fraction(1)
        context.options = {"level": "3", "slicecrc": "1"} if ids else ENCODERS[codec]
        if not ids:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _VIDEO_RANGE
        try:
            self._sounds = {sound.index: self._container.add_stream_from_template(sound) for sound in sounds}
            self._container.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            if not sounds:
                why, hint = f"{codec} of {width}x{height}: {first_line(error)}", "Leave that kind out of --save."
                raise ConfigError("the film cannot be written", why=why, hint=hint) from error
            hint = "Write a .mkv file, which takes nearly every sound, or add --no-audio."
            why = f"{', '.join(sound.codec_context.name for sound in sounds)} into {container}: {first_line(error)}"
            raise ConfigError("the sound cannot be copied", why=why, hint=hint) from error

    def write(self, pts: int, lasts: int, frame: np.ndarray) -> None:
        """Adds a frame, its time and how long it is seen: (H, W) uint8 ids, or (H, W, 3) uint8 blue green red."""
        import av

        if self._ids:
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
        else:
            height, width = frame.shape[:2]
            even: np.ndarray = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            made = av.VideoFrame.from_ndarray(even, format="bgr24")
            made = made.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_VIDEO_RANGE)
        made.pts, made.time_base = pts, self._time_base
        self._lasts[pts] = lasts
        self._encode(made)

    def _encode(self, frame: VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._lasts.pop(packet.pts or 0, 0)  # the encoder does not pass it on
            self._container.mux(packet)

    def copy(self, packets: Iterable[Packet[AudioStream]]) -> None:
        """Adds sound as it is, but for what does not come after the packet before, which no container takes."""
        for packet in packets:
            if packet.pts is None or packet.dts is None or packet.pts < self._earliest:
                continue
            if packet.dts <= self._heard.get(packet.stream.index, packet.dts - 1):
                continue
            self._heard[packet.stream.index] = packet.dts
            packet.stream = self._sounds[packet.stream.index]
            self._container.mux(packet)

    def finish(self) -> None:
        """Writes what is still held back, and the container's end."""
        self._encode(None)
        self._container.close()

    def abandon(self) -> None:
        """Lets go of the encoder; the file is worth nothing."""
        with suppress(Exception):
            self._container.close()
