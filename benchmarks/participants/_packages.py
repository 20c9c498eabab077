"""Peers' packages: optional, so looked for at run time and not named in an import statement."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from typing import Any

from ._base import Missing

__all__ = ["folder_of", "need", "need_command"]


def need(module: str, package: str) -> Any:
    """Return an optional package's module.

    Raises:
        Missing: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{package} is not installed ({error}); python -m pip install -e '.[bench]' brings it"
        raise Missing(reason) from error


def folder_of(module: str) -> str:
    """Return the folder of a package, without importing it; empty when it is not installed."""
    spec = importlib.util.find_spec(module)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else ""


def need_command(name: str, remedy: str, *places: str) -> str:
    """Return the path of a server's program, from the given directories or the search path.

    Raises:
        Missing: there is none.
    """
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", os.defpath)]))
    if found is None:
        reason = f"no program {name}; {remedy}"
        raise Missing(reason)
    return found
