"""Bearer tokens and whom they stand for, from a file that nobody else can read or from the environment."""

from __future__ import annotations

import os
import stat

from ..protocol import InvalidArgument

__all__ = ["parse_tokens", "read_token_file"]

_BYTES_MAX = 1024 * 1024
_PAIR = 2  # a token and its principal


def parse_tokens(text: str, *, source: str) -> dict[str, str]:
    """Return the principal of each token: one ``token principal`` pair per line; blank lines and ``# …`` do not count.

    A principal may have several tokens, so that they can be exchanged one after the other.

    Args:
        text: the lines.
        source: names them in an error, which never shows a token.

    Raises:
        InvalidArgument: a line is not a pair, a token is there twice, or there is none at all.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != _PAIR:
            message = f"{source}, line {number}: expected a token and a principal, found {len(words)} words"
            raise InvalidArgument(message)
        token, principal = words
        if token in tokens:
            message = f"{source}, line {number}: this token is there already; a token stands for one principal"
            raise InvalidArgument(message)
        tokens[token] = principal
    if not tokens:
        message = f"{source} has no tokens; add a line of the form 'token principal'"
        raise InvalidArgument(message)
    return tokens


def read_token_file(path: str) -> dict[str, str]:
    """Return the principal of each token in a file, see ``parse_tokens``.

    Raises:
        InvalidArgument: others than its owner can read or write the file, it is not this user's or no file of text, or
            a line is wrong.
        OSError: it cannot be read.
    """
    source = f"token file {path}"
    # Not blocking: a pipe that nobody writes to must be refused, not waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        found = os.fstat(stream.fileno())  # of what was opened, whatever the name leads to by now
        if not stat.S_ISREG(found.st_mode):
            message = f"{source} is not a regular file"
            raise InvalidArgument(message)
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"{source} is open to others (mode {stat.S_IMODE(found.st_mode):04o}): chmod 600 it"
            raise InvalidArgument(message)
        if found.st_uid not in (os.geteuid(), 0):
            message = f"{source} belongs to another user"
            raise InvalidArgument(message)
        data = stream.read(_BYTES_MAX + 1)
    if len(data) > _BYTES_MAX:
        message = f"{source} has more than {_BYTES_MAX} bytes"
        raise InvalidArgument(message)
    try:
        return parse_tokens(data.decode(), source=source)
    except UnicodeDecodeError as error:
        message = f"{source} is not UTF-8 text"
        raise InvalidArgument(message) from error
