"""A hook of MkDocs: browsers break lines behind any hyphen, but `--max-memory` stays whole."""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"<code.*?</code>", re.DOTALL)
OPTION = re.compile(r"(?<![\w&;/.-])--?[a-z][a-z-]*(?![^<>]*>)")


def on_page_content(html: str, **_: Any) -> str:
    """The page with each option in code marked as `whole`, for site.css."""
    return CODE.sub(lambda code: OPTION.sub(r'<span class="whole">\g<0></span>', code[0]), html)
