from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr, ValidationError

from services import previews
from services.previews import Preview
from services.settings import AuthSettings, PreviewSettings, Settings

OURS = Settings(
    auth=AuthSettings(secret=SecretStr("a-secret-of-this-test-of-32-bytes-or-more")),
    previews=PreviewSettings(url="http://{label}.previews.test:8002/"),
)
PREVIEW = Preview(uuid4(), 8080)


@pytest.mark.parametrize("port", [1, 80, 65535])
@pytest.mark.parametrize("project_id", [UUID(int=0), UUID(int=2**128 - 1), uuid4()])
def test_a_host_name_leads_back_to_its_port_and_project(port: int, project_id: UUID) -> None:
    label = previews.label(OURS, Preview(project_id, port))
    assert len(label) <= 63
    assert label == label.lower()
    assert label.replace("-", "").isalnum()
    for host in (f"{label}.previews.test:8002", f"{label.upper()}.PREVIEWS.TEST", label):
        assert previews.read(OURS, host) == Preview(project_id, port)


def test_the_address_is_made_of_the_label() -> None:
    assert previews.url(OURS, PREVIEW) == f"http://{previews.label(OURS, PREVIEW)}.previews.test:8002/"
    assert previews.url(OURS.model_copy(update={"previews": PreviewSettings(url="")}), PREVIEW) is None


def test_nobody_can_make_a_name_from_that_of_another_port_project_or_installation() -> None:
    port, project, signed = previews.label(OURS, PREVIEW).split("-")
    other_port, other_project, other_signed = previews.label(OURS, Preview(uuid4(), 9090)).split("-")
    elsewhere = OURS.model_copy(update={"auth": AuthSettings(secret=SecretStr("another-secret-of-32-bytes-or-more!!"))})
    assert previews.read(OURS, f"{other_port}-{project}-{signed}") is None
    assert previews.read(OURS, f"{port}-{other_project}-{signed}") is None
    assert previews.read(OURS, f"{port}-{project}-{other_signed}") is None
    assert previews.read(elsewhere, previews.label(OURS, PREVIEW)) is None


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "8000", "8000-", "8000-a-b", "-1-a-b", "99999999-a-b", "8000-€-b", "x" * 10_000, "1-2-3-4"],
)
def test_what_is_no_such_name_leads_nowhere(host: str) -> None:
    assert previews.read(OURS, host) is None


@pytest.mark.parametrize("url", ["http://previews.test/", "{label}", "http://x.{label}.test"])
def test_an_address_without_the_label_at_its_place_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="PREVIEW_URL"):
        PreviewSettings(url=url)
