"""Workflows to begin with: a client shows them, and posts what became of one as a workflow of its own."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Template:
    id: str
    name: str
    description: str
    definition: dict[str, Any]


RESEARCH = Template(
    "research-and-report",
    "Research and report",
    "Looks a topic up, has the agent write a report about it, and keeps that as a file.",
    {
        "entry_point": "topic",
        "steps": [
            {
                "id": "topic",
                "type": "INPUT",
                "name": "Topic",
                "config": {
                    "variables": [
                        {"name": "topic", "type": "string", "description": "What to look up."},
                        {"name": "length", "type": "integer", "default": 500, "required": False},
                    ]
                },
                "next_steps": ["search"],
            },
            {
                "id": "search",
                "type": "TOOL",
                "name": "Search the web",
                "config": {"tool": "web_search", "arguments": {"query": "{{ variables.topic }}"}},
                "next_steps": ["report"],
                "error_handler": "report",
            },
            {
                "id": "report",
                "type": "AGENT",
                "name": "Write the report",
                "config": {
                    "prompt": "Write a report of about {{ variables.length }} words on: {{ variables.topic }}\n\n"
                    "What a first search found:\n{{ steps.search.output.text }}"
                },
                "next_steps": ["keep"],
            },
            {
                "id": "keep",
                "type": "TOOL",
                "name": "Keep it as a file",
                "config": {
                    "tool": "full_file_rewrite",
                    "arguments": {"file_path": "report.md", "file_contents": "{{ steps.report.output.text }}"},
                },
            },
        ],
    },
)

SERVICE = Template(
    "check-a-service",
    "Check a service and tell of trouble",
    "Asks an address several times with pauses between, and posts to another one when it does not answer.",
    {
        "entry_point": "given",
        "max_retries": 1,
        "steps": [
            {
                "id": "given",
                "type": "INPUT",
                "config": {
                    "variables": [
                        {"name": "url", "type": "string"},
                        {"name": "report_to", "type": "string"},
                        {"name": "failures", "type": "integer", "default": 0, "required": False},
                    ]
                },
                "next_steps": ["rounds"],
            },
            {
                "id": "rounds",
                "type": "LOOP",
                "config": {"body": "ask", "over": "[`1`, `2`, `3`]"},
                "next_steps": ["bad"],
            },
            {
                "id": "ask",
                "type": "WEBHOOK",
                "config": {"method": "GET", "url": "{{ variables.url }}"},
                "next_steps": ["pause"],
                "error_handler": "count",
            },
            {
                "id": "count",
                "type": "TRANSFORM",
                "config": {"set": {"failures": "add(variables.failures, `1`)"}},
                "next_steps": ["pause"],
            },
            {"id": "pause", "type": "WAIT", "config": {"seconds": 60}, "next_steps": ["rounds"]},
            {
                "id": "bad",
                "type": "CONDITION",
                "config": {"expression": "variables.failures > `1`"},
                "next_steps": ["tell"],
            },
            {
                "id": "tell",
                "type": "WEBHOOK",
                "config": {
                    "url": "{{ variables.report_to }}",
                    "body": {"url": "{{ variables.url }}", "failures": "{{ variables.failures }}"},
                    "repeatable": True,
                },
            },
        ],
    },
)

SIDE_BY_SIDE = Template(
    "two-views",
    "Two views and a verdict",
    "Has the agent argue for and against something, then weigh both.",
    {
        "entry_point": "question",
        "steps": [
            {
                "id": "question",
                "type": "INPUT",
                "config": {"variables": [{"name": "question", "type": "string"}]},
                "next_steps": ["views"],
            },
            {
                "id": "views",
                "type": "PARALLEL",
                "config": {"branches": ["for", "against"], "failure": "all"},
                "next_steps": ["verdict"],
            },
            {"id": "for", "type": "AGENT", "config": {"prompt": "Argue for: {{ variables.question }}"}},
            {"id": "against", "type": "AGENT", "config": {"prompt": "Argue against: {{ variables.question }}"}},
            {
                "id": "verdict",
                "type": "AGENT",
                "config": {
                    "prompt": "Weigh both views and decide.\n\nFor:\n{{ steps.for.output.text }}\n\n"
                    "Against:\n{{ steps.against.output.text }}"
                },
            },
        ],
    },
)

TEMPLATES = (RESEARCH, SERVICE, SIDE_BY_SIDE)
