"""What browsers are told by every answer, and which host names are answered to."""

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from services import threads
from services.settings import ApiSettings, Settings
from tests.api.conftest import Person

STRICT = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


async def test_every_answer_says_what_browsers_may_do_with_it(ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    answers = {
        200: await ann.get("/threads"),
        404: await ann.get("/nowhere"),
        405: await ann.delete("/threads"),
        422: await ann.get("/threads?page=x"),
        413: await ann.post("/threads", data={"name": "x" * 2_000_000}),
        401: await ann.get("/threads", headers={"Authorization": "Bearer junk"}),
    }
    monkeypatch.setattr(threads, "page", fail)
    answers[500] = await ann.get("/threads")
    for status, answer in answers.items():
        assert answer.status_code == status
        assert {name: answer.headers.get(name) for name in STRICT} == STRICT, status
        assert "Strict-Transport-Security" not in answer.headers


async def test_a_stream_says_it_once_and_keeps_what_it_says_itself(ann: Person) -> None:
    run_id = await ann.make_run()
    await ann.post(f"/agent-run/{run_id}/stop")
    answer = await ann.get(f"/agent-run/{run_id}/stream")
    assert answer.text.startswith("retry:")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers.get_list("Cache-Control") == ["no-cache, no-transform"]


async def test_the_page_of_the_documentation_runs_no_script_but_its_own(ann: Person) -> None:
    page = await ann.get("http://test/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert b64encode(sha256(script.encode()).digest()).decode() in policy["script-src"]
    assert "unsafe" not in policy["script-src"]
    for source in re.findall(r"""(?:src|href)="(https://[^/"]+)""", page.text):
        assert source in " ".join(policy.values())
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert (await ann.get("http://test/redoc")).status_code == 404


class TestBehindTls:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        api = ApiSettings.model_validate(
            {"hsts": "180d", "allowed_hosts": ["api.example.org", "*.tenants.example.org"]}
        )
        return settings.model_copy(update={"api": api})

    async def test_browsers_are_told_to_come_by_tls_only(self, ann: Person) -> None:
        for path in ("/threads", "/health"):
            answer = await ann.get(f"https://api.example.org/api{path}")
            assert answer.headers["Strict-Transport-Security"] == "max-age=15552000"

    @pytest.mark.parametrize("host", ["api.example.org", "API.example.org:8443", "one.tenants.example.org"])
    async def test_a_name_of_ours_is_answered_to(self, ann: Person, host: str) -> None:
        assert (await ann.get("/threads", headers={"Host": host})).status_code == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "api.example.org.evil.example", "tenants.example.org", "127.0.0.1", "", "xapi.example.org"],
    )
    async def test_another_name_is_refused_and_probes_are_not(self, ann: Person, host: str) -> None:
        answer = await ann.get("/threads", headers={"Host": host})
        assert answer.status_code == 400
        assert answer.json()["detail"] == "This server does not answer to the host name of the request."
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert (await ann.get("/health", headers={"Host": host})).status_code == 200
