"""Owns what there is to say of a path at which the file or folder wanted is not."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal


def absence(path: str | Path, wanted: Literal["file", "folder"] = "file") -> str:
    """Why there is no `wanted` at `path`, in words; never raises, whatever the path."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "it is a link that leads nowhere" if os.path.islink(path) else f"there is no such {wanted}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:
        return "the name is not a possible file name"
    kind = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"
    return f"it is {kind}, wanted a {wanted}"
