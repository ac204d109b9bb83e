"""`./dev check`, `./dev audit` and `./dev lock`: the tools, all run even when one fails."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.embedded.console import Console, EmbeddedError
from services.embedded.environment import CHECKOUT, for_our_code

CHECKS: dict[str, Sequence[str]] = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy",),
    "imports": ("lint-imports",),
    "packages": ("uv", "pip", "check"),
    "scripts": ("shellcheck", "dev", ".ci/run"),
    "image": ("hadolint", "Dockerfile"),
    "settings": ("python", "-m", "tests.services.configuration", "--check"),
}
LOCKS: dict[str, Sequence[str]] = {
    "requirements.lock": (),
    "requirements-browser.lock": ("--extra", "browser", "--constraint", "requirements.lock"),
    "requirements-embedded.lock": ("--extra", "embedded", "--constraint", "requirements.lock"),
    "requirements-dev.lock": (
        "--extra",
        "embedded",
        "--extra",
        "dev",
        "--constraint",
        "requirements-embedded.lock",
        "--constraint",
        "requirements-browser.lock",
    ),
}
AUDIT = ("uv", "tool", "run", "pip-audit", "--disable-pip", "--require-hashes", "--vulnerability-service", "osv")
AUDITED = ("requirements-browser.lock", "requirements-dev.lock")
"""Between them they hold all the others."""
UNREASONED = re.compile(r"#\s*noqa(?!: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)* - \S)")
PACKAGES = ("api", "worker", "agent", "services", "migrations", "tests")
COMPILE = ("uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header")


def check(console: Console) -> int:
    """Run every check; 1 when any failed."""
    failed = [name for name, command in CHECKS.items() if not passes(console, name, command)]
    if unreasoned := list(exclusions_without_reason()):
        console.say("\n".join(f"  {place}: an exclusion without its reason (noqa: CODE - why)" for place in unreasoned))
        failed.append("reasons")
    console.say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def exclusions_without_reason() -> Iterator[str]:
    """Where a rule is switched off and nobody says why."""
    for path in sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if UNREASONED.search(line):
                yield f"{path.relative_to(CHECKOUT)}:{number}"


def audit(console: Console) -> int:
    """Ask the advisory database (osv.dev: this needs the internet) about each package of the locks; 1 for a finding."""
    found = [name for name in AUDITED if not passes(console, name, (*AUDIT, "-r", name))]
    console.say(f"findings, or no answer: {', '.join(found)}" if found else "nothing is known against any package")
    return 1 if found else 0


def passes(console: Console, name: str, command: Sequence[str]) -> bool:
    console.say(f"— {name}: {' '.join(command)}")
    return call([tool(command[0]), *command[1:]]) == 0


def lock(console: Console, upgrade: Sequence[str]) -> int:
    """Compile the hash locks, each within those before that it is built on; `upgrade` is passed to uv (`--upgrade`)."""
    for name, extras in LOCKS.items():
        # uv reads nothing but the file names: no index address and no path reaches the lock.
        if call(
            [tool(COMPILE[0]), *COMPILE[1:], *upgrade, *extras, "--output-file", name, "pyproject.toml"], quiet=True
        ):
            raise EmbeddedError(f"{name} could not be compiled")
        console.say(f"  {name}")
    return 0


def tool(name: str) -> str:
    """A program of the environment we run in."""
    return str(Path(sys.executable).with_name(name))


def call(argv: Sequence[str], *, quiet: bool = False) -> int:
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(argv, cwd=CHECKOUT, env=for_our_code({}), stdout=output).returncode  # noqa: S603 - our own tools
