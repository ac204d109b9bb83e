"""An image for sandboxes from parts of this machine: no registry, nothing to download."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

PROGRAMS = (
    "bash",
    "cat",
    "dd",
    "grep",
    "id",
    "ls",
    "ps",
    "rm",
    "sleep",
    "touch",
    "nproc",
    "find",
    "mkdir",
    "chmod",
    "seq",
)
NEEDLESS = re.compile(
    r"/(test|idlelib|tkinter|lib2to3|ensurepip|pydoc_data|distutils|__pycache__|turtledemo|unittest|xmlrpc|sqlite3|curses|dbm|wsgiref|config-[^/]*)(/|$)"
)
FOLDERS = {"tmp": 0o1777, "proc": 0o755, "sys": 0o755, "dev": 0o755, "etc": 0o755, "run": 0o755}
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/bin/sh": "bash"}
LIBRARY = re.compile(r"(/\S+) \(0x")


def write(target: Path, *, workspace: int = 0o1777) -> None:
    """A tar of a root file system with Python, a shell and what they load."""
    python = Path("/usr/bin/python3").resolve()
    standard = Path(f"/usr/lib/{python.name}")
    programs = [python, *(Path("/usr/bin", name).resolve() for name in PROGRAMS)]
    extensions = [path for path in standard.glob("lib-dynload/*.so") if path.name.startswith(("_ctypes.", "_json."))]
    with tarfile.open(target, "w") as image:
        for name, mode in {**FOLDERS, "workspace": workspace}.items():
            add_folder(image, name, mode)
        for name, to in {**LINKS, "usr/bin/python3": python.name}.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, to
            image.addfile(link)
        for path in programs:
            image.add(path, arcname=f"usr/bin/{path.name}")
        for library in sorted(loaded([*programs, *extensions])):
            image.add(Path(library).resolve(), arcname=in_usr(library))
        image.add(standard, arcname=str(standard)[1:], filter=needed)


def add_folder(image: tarfile.TarFile, name: str, mode: int) -> None:
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode = tarfile.DIRTYPE, mode
    image.addfile(folder, io.BytesIO())


def loaded(programs: list[Path]) -> set[str]:
    said = subprocess.run(["/usr/bin/ldd", *programs], capture_output=True, text=True, check=True).stdout
    return set(LIBRARY.findall(said))


def in_usr(path: str) -> str:
    return path[1:] if path.startswith("/usr/") else f"usr{path}"


def needed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if NEEDLESS.search(f"/{entry.name}") else entry
