import httpx2
import pytest

from agent.llm import failures
from agent.llm.errors import FIRST_WAIT, wait_before_retry
from agent.llm.failures import CallFailed


@pytest.mark.parametrize(
    ("error", "failure", "wait"),
    [
        (httpx2.ConnectTimeout(""), failures.NotReachedInTime, FIRST_WAIT),
        (httpx2.PoolTimeout(""), failures.NotReachedInTime, FIRST_WAIT),
        (httpx2.ReadTimeout(""), failures.WentSilent, None),
        (httpx2.WriteTimeout(""), failures.WentSilent, None),
        (httpx2.ConnectError(""), failures.Unreachable, FIRST_WAIT),
        (httpx2.InvalidURL(""), failures.Unreachable, FIRST_WAIT),
        (httpx2.ReadError(""), failures.BrokeOff, FIRST_WAIT),
        (httpx2.RemoteProtocolError(""), failures.BrokeOff, FIRST_WAIT),
        (httpx2.SSEError(""), failures.Unreadable, None),
        (None, failures.BrokeOff, FIRST_WAIT),
    ],
)
def test_what_went_wrong_on_the_wire_decides_whether_asking_again_can_help(
    error: BaseException | None, failure: type[CallFailed], wait: float | None
) -> None:
    found = failures.from_transport(error)
    assert type(found) is failure
    assert wait_before_retry(found, 1) == wait
