"""Schemathesis over the whole OpenAPI document: what is asked, how much of it, and what does not count as a finding."""

import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation.case import Case
from schemathesis.generation.meta import TestPhase
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER, HookContext

from api.document import GIVES

Asked = Case[Any]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
)
PATIENCE_SECONDS = 10.0
STREAM_SECONDS = 0.2
"""How long a reader stays whose run says nothing."""
LONGEST_WAIT = 0.01
STARTS = {"initiate", "start_run", "execute"}
UNLIKELY = {"agent_id", "target_agent_id", "is_agent_builder", "webhook_url"}


@dataclass(frozen=True)
class User:
    """Who asks: what every request says of them, and the account whose things they ask for."""

    account_id: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Effort:
    """How many cases: each that the document's own limits suggest, `fuzzed` for each operation, so many scenarios."""

    covered: bool = False
    fuzzed: int = 0
    scenarios: int = 0


@dataclass
class Findings:
    """What a run came to: answers by operation and status, and what was wrong, each once for an operation."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        return self.answers.total()

    def take(self, event: events.EngineEvent) -> None:
        if isinstance(event, events.ScenarioFinished):
            self.take_scenario(event)
        elif isinstance(event, events.NonFatalError):
            self.wrong.setdefault((event.label, event.info.title), event.info.message)
        elif isinstance(event, events.FatalError):
            raise event.exception

    def take_scenario(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for case_id, interaction in recorder.interactions.items():
            status = interaction.response.status_code if interaction.response else 599
            self.answers[recorder.cases[case_id].value.operation.label, status] += 1
        for checks in recorder.checks.values():
            for check in checks:
                if check.status == Status.FAILURE and check.failure_info:
                    failure = check.failure_info.failure
                    says = f"{failure.message}\n{check.failure_info.code_sample}"
                    self.wrong.setdefault((str(failure.operation), failure.title), says)


@dataclass
class Visitor:
    """What is changed of the cases, so that more of them come to something: names of things that are there."""

    user: User
    known: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    changed: set[str] = field(default_factory=set)

    def prepare(self, case: Asked) -> None:
        keep_short(case)
        keep_own_account(case, self.user)
        if case.meta and case.meta.phase.name != TestPhase.STATEFUL and case.meta.generation.mode.is_positive:
            self.name_known(case)
        if name_of(case) in STARTS and case.meta and case.meta.generation.mode.is_positive:
            self.make_startable(case)

    def remember(self, case: Asked, response: Response) -> None:
        """Remember what it made, as the document's links would have it."""
        if response.status_code == 200:
            for parameter, place in GIVES.get(name_of(case), {}).items():
                self.known[parameter].append(response.json()[place])

    def name_known(self, case: Asked) -> None:
        for parameter in case.path_parameters.keys() & self.known.keys():
            case.path_parameters[parameter] = self.known[parameter][-1]

    def make_startable(self, case: Asked) -> None:
        """Made-up models, agents and addresses would be refused alike, and no run would ever begin."""
        if isinstance(case.body, dict):
            self.changed.add(case.id)
            for name in UNLIKELY & case.body.keys():
                del case.body[name]
            case.body["model_name"] = "demo/echo"

    def counts(self, failure: Failure, case: Asked) -> bool:
        """What counts. A truth value may be said as 0, a number in quotes, an absent object as null: frontends do.

        In a form everything is a text anyway.
        """
        if not isinstance(failure, AcceptedNegativeData):
            return True
        of_type = "Incorrect type" in failure.message or "violates `type`" in failure.message
        return not (of_type or case.id in self.changed)


def name_of(case: Asked) -> str:
    return str(case.operation.definition.raw.get("operationId"))


def explore(app: Any, document: dict[str, Any], user: User, effort: Effort) -> Findings:
    """Ask the application all that its document says may be asked, and more."""
    schema = schemathesis.openapi.from_dict(document, config=configuration(user, effort))
    schema.app = app
    visitor, findings = Visitor(user), Findings()

    def filter_failure(context: HookContext, failure: Failure, case: Asked, response: Response) -> bool:
        return visitor.counts(failure, case)

    def before_call(context: HookContext, case: Asked, kwargs: dict[str, Any]) -> None:
        visitor.prepare(case)

    def after_call(context: HookContext, case: Asked, response: Response) -> None:
        visitor.remember(case, response)

    schema.hook(filter_failure)
    for hook in (before_call, after_call):
        schemathesis.hook(hook)
    try:
        with warnings.catch_warnings():
            # Hypothesis warns of its own slowness when it writes down a large body that it has made up.
            warnings.filterwarnings("ignore", "Generating overly large repr")
            for event in from_schema(schema).execute():
                findings.take(event)
    finally:
        for hook in (before_call, after_call):
            GLOBAL_HOOK_DISPATCHER.unregister(hook)
    return findings


def keep_short(case: Asked) -> None:
    """Whoever waits for a run's end would wait for nothing here."""
    try:
        wait = float(case.query.get("wait_seconds", 0))
    except (TypeError, ValueError):
        return
    if LONGEST_WAIT < wait <= 60:
        case.query["wait_seconds"] = LONGEST_WAIT


def keep_own_account(case: Asked, user: User) -> None:
    """Made-up ids would name accounts of others, and every answer would be the same 403."""
    try:
        UUID(str(case.headers.get("X-Account-Id")))
    except ValueError:
        return
    case.headers["X-Account-Id"] = user.account_id


def configuration(user: User, effort: Effort) -> SchemathesisConfig:
    told = {
        "seed": 1,
        "cache": {"enabled": False},
        "headers": user.headers,
        "continue-on-failure": True,
        "request-timeout": PATIENCE_SECONDS,
        "max-stream-events": 2,
        "operations": [{"include-operation-id": "stream_run", "request-timeout": STREAM_SECONDS}],
        "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
        # Made-up tokens beside a good key look to the explorer as if they had been accepted.
        "generation": {"no-shrink": True, "with-security-parameters": "Authorization" in user.headers},
        # Two threads that parse Python at once break CPython 3.11 (its issue 106905): Hypothesis takes the constants.
        "analysis": {"constants": {"enabled": False}},
        "phases": {
            "examples": {"enabled": False},
            "coverage": {"enabled": effort.covered},
            "fuzzing": {"enabled": effort.fuzzed > 0, "generation": {"max-examples": max(1, effort.fuzzed)}},
            "stateful": {"enabled": effort.scenarios > 0, "generation": {"max-examples": max(1, effort.scenarios)}},
        },
    }
    return SchemathesisConfig.from_dict(told)
