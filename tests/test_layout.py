"""The rooms: which folder is which package, what each may import, and what no file may contain."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
FRONT = "logmark"
# From the inside out: a room may import itself and the rooms before it.
ROOMS = ("protocol", "storage", "actors", FRONT)
HOMES = {FRONT: ROOT / "src" / FRONT} | {f"{FRONT}.{room}": ROOT / room for room in ROOMS[:-1]}
MODULE_LINES_MAX = 600
CLI_FACADE_LINES_MAX = 60
# `protocol` holds values and state machines: no thread, socket, file, clock or chance.
IMPURE = frozenset(
    """
    _thread asyncio concurrent fcntl filelock glob http io mmap multiprocessing os pathlib pykka queue random
    sched secrets select selectors shutil signal socket sqlite3 ssl subprocess tempfile threading time urllib
    """.split()  # noqa: SIM905 - a list of thirty short lines says no more
)
FACADE_HELPERS = frozenset({"__dir__", "__getattr__", "open"})
NOT_OURS = frozenset({".git", ".ci-venv", ".venv", "venv", "build", "dist", "__pycache__", "node_modules"})
FORBIDDEN_TEXT = re.compile(
    r"(?:^|[^\w.])/(?:work|farm|root|home)/"  # a path of one machine
    r"|pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)"  # a registry: the choice is the machine's
    r"|index[-_]url|registry\s*=",
    re.IGNORECASE | re.MULTILINE,
)


def source_files(home: Path) -> Iterator[Path]:
    """Yield the modules below `home`, without following the links to the other rooms."""
    for folder, subfolders, files in os.walk(home):
        subfolders[:] = [name for name in subfolders if name not in NOT_OURS]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def modules() -> dict[str, Path]:
    """Map every module's import name, `__init__` included, to its real file."""
    found: dict[str, Path] = {}
    for package, home in HOMES.items():
        for path in source_files(home):
            found[".".join((package, *path.relative_to(home).with_suffix("").parts))] = path
    return found


def facades() -> dict[str, Path]:
    """Map every package to its `__init__.py`."""
    return {name.removesuffix(".__init__"): path for name, path in modules().items() if path.name == "__init__.py"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def top(name: str) -> str:
    return name.partition(".")[0]


def room_of(name: str) -> str:
    """Return the room that the import name lies in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS[:-1] else FRONT


def imports(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full name of all that the module imports, at any depth, also for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The name of `__init__` ends in it, so that one dot takes off the last part in every module.
            base = module.split(".")[: -node.level] if node.level else []
            source = [*base, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join((*source, alias.name))) for alias in node.names)


def project_files() -> list[Path]:
    """Return the files git tracks or would track; without git, all files outside builds and environments."""
    git = shutil.which("git")
    if git is not None:
        command = [git, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, capture_output=True, text=True, check=False)
        if listing.returncode == 0:
            return [ROOT / name for name in sorted(set(listing.stdout.split("\0"))) if name]
    found: list[Path] = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [
            name for name in subfolders if name not in NOT_OURS and not name.endswith((".egg-info", "_cache"))
        ]
        found.extend(Path(folder, name) for name in files)
    return found


def exported(tree: ast.Module) -> list[str] | None:
    """Return the names in `__all__`, or None when there is no such literal list."""
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=elements))
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.List(elts=elements))
            ):
                return [ast.literal_eval(element) for element in elements]
            case _:
                pass
    return None


def export_order(name: str) -> tuple[int, str]:
    """Sort as ruff does (RUF022): constants, then classes, then the rest."""
    if len(name) > 1 and name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name


def belongs_in_facade(node: ast.stmt, *, front: bool) -> bool:
    """Tell whether a statement may stand in an `__init__.py`; the front door may also load lazily."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=[]):
            return all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in body)
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name == "__all__" or (front and name.startswith("_") and not name.startswith("__"))
        case ast.FunctionDef(name=name):
            return front and name in FACADE_HELPERS
        case _:
            return False


def test_the_package_list_equals_the_folders_on_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()

    assert sorted(config.sections()) == ["options", "options.package_data"]
    assert sorted(config["options"]) == ["package_dir", "packages"]
    assert listed == sorted(set(listed))
    assert listed == sorted(facades())


def test_every_folder_with_modules_is_a_package() -> None:
    assert {path.parent for path in modules().values()} == {path.parent for path in facades().values()}


def test_the_links_lead_to_the_rooms_and_move_with_the_checkout() -> None:
    links = {path.name: path.readlink() for path in HOMES[FRONT].iterdir() if path.is_symlink()}

    assert links == {room: Path("..", "..", room) for room in ROOMS[:-1]}


def test_rooms_import_inwards_only() -> None:
    outward = [
        f"{module}:{line} imports {name}"
        for module, path in modules().items()
        for line, name in imports(module, parse(path))
        if top(name) == FRONT and ROOMS.index(room_of(name)) > ROOMS.index(room_of(module))
    ]

    assert outward == []


def test_packages_import_each_other_relatively() -> None:
    # pyright checks the real folders and, through the links, the same files as logmark.*. An absolute import
    # would join the two, and pyright would then report a class as not being itself.
    absolute = [
        f"{module}:{node.lineno}"
        for module, path in modules().items()
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.ImportFrom) and not node.level and top(node.module or "") == FRONT)
        or (isinstance(node, ast.Import) and any(top(alias.name) == FRONT for alias in node.names))
    ]

    assert absolute == []


def test_protocol_touches_no_thread_socket_file_or_clock() -> None:
    impure = [
        f"{module}:{line} imports {name}"
        for module, path in modules().items()
        if room_of(module) == "protocol"
        for line, name in imports(module, parse(path))
        if top(name) in IMPURE
    ]

    assert impure == []


def test_facades_only_re_export() -> None:
    strangers = [
        f"{package}:{node.lineno} {type(node).__name__}"
        for package, path in facades().items()
        for node in parse(path).body
        if not belongs_in_facade(node, front=package == FRONT)
    ]

    assert strangers == []


def test_facades_list_what_they_export_in_order() -> None:
    lists = {package: exported(parse(path)) for package, path in facades().items()}

    assert [package for package, names in lists.items() if names is None] == []
    assert lists == {package: sorted(set(names or []), key=export_order) for package, names in lists.items()}


def test_the_command_line_facade_is_small() -> None:
    lines = facades()[f"{FRONT}.cli"].read_text(encoding="utf-8").splitlines()

    assert len(lines) <= CLI_FACADE_LINES_MAX


def test_no_module_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in project_files()
        if path.suffix == ".py" and path.is_file()
    }

    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_no_file_names_a_machine_or_a_registry() -> None:
    found: list[str] = []
    for path in project_files():
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        for match in FORBIDDEN_TEXT.finditer(text):
            line = text.count("\n", 0, match.end()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line} {match.group().strip()}")

    assert found == []
