import pytest

from services.sandbox import workspace
from services.sandbox.workspace import BadPath


@pytest.mark.parametrize("given", ["a/b.txt", "./a/b.txt", "/workspace/a/b.txt", " a//b.txt", "a/c/../b.txt"])
def test_a_path_is_taken_from_the_workspace_on(given: str) -> None:
    assert workspace.inside(given) == "/workspace/a/b.txt"


@pytest.mark.parametrize("given", ["", ".", "/workspace", "/workspace/", "a/.."])
def test_the_workspace_itself_is_a_path(given: str) -> None:
    assert workspace.inside(given) == "/workspace"


@pytest.mark.parametrize("given", ["/etc/passwd", "../etc", "/workspace/../etc", "/workspaces/a", "a\0b", "x" * 5000])
def test_what_is_outside_is_refused(given: str) -> None:
    with pytest.raises(BadPath):
        workspace.inside(given)
