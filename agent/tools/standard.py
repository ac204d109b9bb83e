"""The tools that every agent has."""

from agent.tools import conversation, tasks
from agent.tools.base import Registry

STANDARD = Registry.of(
    (
        conversation.ask,
        conversation.complete,
        conversation.web_browser_takeover,
        conversation.expand_message,
        tasks.task_list,
    )
)
