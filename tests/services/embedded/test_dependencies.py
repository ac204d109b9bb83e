import pytest

from services.embedded import dependencies
from services.embedded.console import EmbeddedError

TOLD = """browser
  Depends: liba
 |Depends: libb
  Depends: libb2
  PreDepends: <virtual>
    provider
  Recommends: libr
"""


def test_each_need_is_a_list_of_packages_of_which_one_is_enough() -> None:
    needed = [each for each in dependencies.alternatives(TOLD) if each]
    assert needed == [["liba"], ["libb", "libb2"], ["<virtual>"]]
    assert [dependencies.chosen(each, {"libb2"}) for each in needed] == ["liba", "", ""]


async def test_what_the_machine_has_is_not_fetched_again() -> None:
    found = await dependencies.missing(["bubblewrap"], (), [])
    assert "bubblewrap" in found
    assert "libc6" not in found


async def test_a_package_that_apt_does_not_know_is_an_error() -> None:
    with pytest.raises(EmbeddedError, match="apt-cache"):
        await dependencies.missing(["no-such-package-at-all"], (), [])
