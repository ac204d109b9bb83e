"""The tools there are: those that every agent has, and the groups that an agent may have by its `agentpress_tools`."""

from itertools import chain

from agent.browser import driver
from agent.tools import conversation, tasks
from agent.tools.base import Registry, Tool
from agent.tools.browser import BROWSER
from agent.tools.expose import PORTS
from agent.tools.files import FILES
from agent.tools.shell import SHELL
from agent.tools.vision import VISION
from agent.tools.web import WEB

ALWAYS: tuple[Tool, ...] = (
    conversation.ask,
    conversation.complete,
    conversation.web_browser_takeover,
    conversation.expand_message,
    tasks.task_list,
)

GROUPS: dict[str, tuple[Tool, ...]] = {
    "sb_files_tool": FILES,
    "sb_shell_tool": SHELL,
    "sb_vision_tool": VISION,
    "web_search_tool": WEB,
    "sb_expose_tool": PORTS,
    "sb_browser_tool": BROWSER,
}
"""By the names that agents of existing frontends enable them with."""

UNASKED = {name: tools for name, tools in GROUPS.items() if tools is not BROWSER or driver.installed()}
"""What a run has whose agent names no groups: not what this installation does not have."""

STANDARD = Registry.of(chain(ALWAYS, *UNASKED.values()))
