"""The system prompt, composed of what stands in `prompts/` and of what the run brings."""

from datetime import date
from pathlib import Path

from agent.context import RunContext

PROMPTS = Path(__file__).parent / "prompts"
IDENTITY = (PROMPTS / "identity.md").read_text().strip()
SYSTEM = (PROMPTS / "system.md").read_text().strip()
XML_TOOLS = (PROMPTS / "xml_tools.md").read_text().strip()


def compose(ctx: RunContext, today: date, tools: str = "") -> str:
    """Who the agent is, what holds for all, and a section for each thing it has.

    `tools` describes the tools to a model that calls them in XML. Nothing changes within a day: providers cache it.
    """
    identity = ctx.own_prompt.strip() or IDENTITY
    general = SYSTEM.replace("{date}", today.isoformat())
    in_xml = [XML_TOOLS.replace("{tools}", tools)] if tools else []
    return "\n\n".join([identity, general, *ctx.prompt_sections, *in_xml])
