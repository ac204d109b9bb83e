"""What every line of the log about a run says of it."""

from services import origin
from services.runs.store import Run


def about(run: Run) -> dict[str, str | int]:
    """The ids that lines, events and spans are found by, whoever writes them; only those that it has."""
    named = {name: run.settings.get(name) for name in ("workflow_id", "execution_id")}
    return {
        "agent_run_id": str(run.id),
        "thread_id": str(run.thread_id),
        "account_id": str(run.account_id),
        "attempt": run.attempt,
        **{name: str(known) for name, known in named.items() if known},
        **requested_by(origin.of_row(run.settings).request_id),
    }


def about_attempt(run: Run) -> dict[str, str | int]:
    """The same where it is driven: the message that woke us up may know of a request that the row does not."""
    return {**about(run), **requested_by(origin.of_attempt(run.settings).request_id)}


def requested_by(request_id: str) -> dict[str, str]:
    return {"request_id": request_id} if request_id else {}
