"""The checksum of everything on disk: the CRC-32 of zlib, gzip and PNG.

``isal`` computes the same sums several times faster on something as short as a row, which makes a quarter of what it
costs to read one. It is optional (``logmark[fast]``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zlib import crc32
else:
    try:
        from isal.isal_zlib import crc32
    except ImportError:
        from zlib import crc32

__all__ = ["crc32"]
