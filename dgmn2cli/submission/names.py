"""Owns how the test server tells which picture a file belongs to: by the start of its name."""

from __future__ import annotations

import re

_NAME = re.compile(r"([A-Za-z-]+)_[0-9]{6}_[0-9]{6}(?=[_.])")


def picture_of(member: str) -> str:
    """CITY_123456_123456 of a file's name, any folder before it; empty if it does not start so, or is no PNG."""
    name = member.replace("\\", "/").rpartition("/")[2]
    match = _NAME.match(name)
    return match[0] if match is not None and name.lower().endswith(".png") else ""
