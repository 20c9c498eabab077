"""The live page: what is in a store and what happens to it, in a browser on this machine."""

from __future__ import annotations

from ._page import LivePage, serve_page

__all__ = ["LivePage", "serve_page"]
