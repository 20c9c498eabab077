"""The page's one file, and the headers that keep a browser from running anything else.

The styles and the script stand inside the file. The policy names their hashes, so that the browser runs these and
nothing that data might smuggle in; everything else that a page could load is off, and so are the functions that make
markup or code of text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

__all__ = ["page"]

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def _sources(text: str, tag: str) -> str:
    """Return the hashes of the inline elements of one kind, as a policy names them."""
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(match[2].encode()).digest()).decode()}'"
        for match in _INLINE.finditer(text)
        if match[1] == tag
    )


@functools.cache
def page() -> tuple[str, dict[str, str]]:
    """Return the page and the headers to serve it with."""
    text = resources.files("logmark.ui").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'",
        f"script-src {_sources(text, 'script')}",
        f"style-src {_sources(text, 'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return text, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
