"""What a file is by its first bytes: an image format that is decoded here, or something else with its name."""

from __future__ import annotations


class Malformed(ValueError):  # noqa: N818
    """The bytes are no whole image; the message says why, `hint` what to do. Never leaves `dgmn2cli`."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


FETCH_AGAIN = "Fetch or export the file again."
CONVERT = "Convert it to PNG."
ONE_FRAME = "Save one frame of it as PNG."
VIDEO = "Give it to `dgmn2 video`, or save one frame of it as PNG."

_KNOWN = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"),
    *((b"P%d%c" % (kind, space), "PNM") for kind in range(1, 7) for space in b" \t\r\n#"),
)
_FOREIGN = (
    (b"\xff\x0a", "a JPEG XL image", CONVERT),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", CONVERT),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image", CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image", CONVERT),
    (b"8BPS", "a Photoshop file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", "Save it as an image, such as PNG."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch the file with `git lfs pull`."),
    (b"%PDF", "a PDF document", "Export its page as an image."),
    (b"PK\x03\x04", "a ZIP archive", "Unpack it, and give the images in it."),
    (b"\x1f\x8b", "a gzip file", "Unpack it, and give the images in it."),
    (b"\x1a\x45\xdf\xa3", "a video", VIDEO),  # Matroska, WebM
    (b"FLV\x01", "a video", VIDEO),
    (b"\0\0\x01\xba", "a video", VIDEO),  # MPEG
)


def sniff(data: bytes) -> str:
    """The format of an image file: PNG, JPEG, WebP, BMP, TIFF, GIF or PNM."""
    for magic, name in _KNOWN:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    name, hint = _foreign(data[:64])
    raise Malformed(f"it is {name}, and none of the image formats that are read here", hint)


def _foreign(head: bytes) -> tuple[str, str]:
    """A phrase for a file that is not decoded here, and what to do about it."""
    for magic, name, hint in _FOREIGN:
        if head.startswith(magic):
            return name, hint
    if head[4:8] == b"ftyp":
        if head[8:11] in (b"hei", b"hev", b"mif", b"avi", b"msf"):
            return "a HEIF or AVIF image", CONVERT
        return "a video", VIDEO
    if head.startswith(b"RIFF") and head[8:11] == b"AVI":
        return "a video", VIDEO
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page", "Fetch the file itself; a login or error page was saved in its place."
    if text.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG document", "Draw it as PNG."
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text file", "Fetch or export the image itself; this may be a list or a pointer to it."
    return "of an unknown format", "Check what wrote the file."
