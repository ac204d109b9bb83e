"""What is known of each model: the names it goes by, how much it reads and writes, and what it can do.

Light enough for the API. Limits are tokens, from the makers' model pages (October 2026).
"""

from dataclasses import dataclass
from typing import Literal

K = 1_000
M = 1_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """Limits and abilities of one model, or of a family.

    `thinking`: not at all; by `reasoning_effort`; Anthropic's budget of tokens; Anthropic's adaptive with an effort.
    `thinking_off`: how Anthropic's API is told not to think: by leaving it out, by a type of its own, or never.
    `binds_thinking`: a thinking block is only taken back behind exactly the messages that it was thought about.
    """

    context_window: int = 32 * K
    max_output: int = 4 * K
    tools: bool = True
    images: bool = False
    thinking: Literal["none", "effort", "budget", "adaptive"] = "effort"
    thinking_off: Literal["omit", "disabled", "between_tools", "never"] = "omit"
    binds_thinking: bool = False


UNKNOWN = Model()
CLAUDE_OLD = Model(200 * K, 8 * K, images=True, thinking="none")
CLAUDE_4 = Model(200 * K, 32 * K, images=True, thinking="budget")
CLAUDE_4_5 = Model(200 * K, 64 * K, images=True, thinking="budget")
CLAUDE_4_6 = Model(M, 128 * K, images=True, thinking="adaptive")
CLAUDE_5 = Model(M, 128 * K, images=True, thinking="adaptive", thinking_off="disabled")
CLAUDE_ALWAYS = Model(M, 128 * K, images=True, thinking="adaptive", thinking_off="never")
CLAUDE_BOUND = Model(M, 128 * K, images=True, thinking="adaptive", thinking_off="never", binds_thinking=True)

MODELS = {
    "claude": CLAUDE_BOUND,  # one that came after this table: the strictest rules, which every newer one takes
    "claude-3": CLAUDE_OLD,
    "claude-3-7": CLAUDE_4_5,
    "claude-opus-4": CLAUDE_4,
    "claude-sonnet-4": CLAUDE_4_5,
    "claude-opus-4-5": CLAUDE_4_5,
    "claude-haiku-4-5": CLAUDE_4_5,
    "claude-opus-4-6": CLAUDE_4_6,
    "claude-sonnet-4-6": CLAUDE_4_6,
    "claude-opus-4-7": CLAUDE_4_6,
    "claude-opus-4-8": CLAUDE_4_6,
    "claude-sonnet-5": CLAUDE_5,
    "claude-opus-5": CLAUDE_5,
    "claude-fable-5": CLAUDE_ALWAYS,
    "claude-mythos-5": CLAUDE_ALWAYS,
    "claude-fable-5-1": CLAUDE_BOUND,
    "claude-mythos-5-1": CLAUDE_BOUND,
    "claude-fable-5-2": CLAUDE_BOUND,
    "claude-mythos-5-2": CLAUDE_BOUND,
    "claude-opus-5-5": CLAUDE_BOUND,
    "claude-sonnet-5-5": Model(M, 128 * K, True, True, "adaptive", "between_tools", binds_thinking=True),
    "claude-haiku-5-5": Model(M, 128 * K, True, True, "adaptive", "disabled", binds_thinking=True),
    "gpt": Model(128 * K, 16 * K, images=True),
    "gpt-3-5": Model(16 * K, 4 * K, thinking="none"),
    "gpt-4": Model(8 * K, 4 * K, thinking="none"),
    "gpt-4-turbo": Model(128 * K, 4 * K, images=True, thinking="none"),
    "gpt-4o": Model(128 * K, 16 * K, images=True, thinking="none"),
    "gpt-4-1": Model(M, 32 * K, images=True, thinking="none"),
    "gpt-5": Model(400 * K, 128 * K, images=True),
    "gpt-oss": Model(128 * K, 32 * K),
    "o1": Model(200 * K, 100 * K, images=True),
    "o3": Model(200 * K, 100 * K, images=True),
    "o4": Model(200 * K, 100 * K, images=True),
    "gemini": Model(M, 64 * K, images=True),
    "grok": Model(128 * K, 16 * K),
    "grok-4": Model(256 * K, 64 * K, images=True),
    "deepseek": Model(128 * K, 8 * K),
    "deepseek-r1": Model(64 * K, 8 * K, tools=False),
    "kimi-k2": Model(256 * K, 16 * K),
    "qwen3": Model(128 * K, 16 * K),
    "llama-3": Model(128 * K, 8 * K, thinking="none"),
    "llama3": Model(8 * K, 4 * K, thinking="none"),
    "mistral": Model(128 * K, 8 * K, thinking="none"),
}
"""By the beginning of the maker's name, dots as dashes; the longest that fits counts."""

ALIASES = {
    "sonnet": "anthropic/claude-sonnet-5-5",
    "opus": "anthropic/claude-opus-5-5",
    "haiku": "anthropic/claude-haiku-5-5",
    "fable": "anthropic/claude-fable-5-1",
    "sonnet-3.5": "anthropic/claude-sonnet-4-6",
    "sonnet-3.7": "anthropic/claude-sonnet-4-6",
    "claude-3.5": "anthropic/claude-sonnet-4-6",
    "claude-3.7": "anthropic/claude-sonnet-4-6",
    "claude-3-7-sonnet-latest": "anthropic/claude-sonnet-4-6",
    "claude-sonnet-4": "anthropic/claude-sonnet-4-6",
    "haiku-3.5": "anthropic/claude-haiku-5-5",
    "deepseek": "openrouter/deepseek/deepseek-chat",
    "deepseek-r1": "openrouter/deepseek/deepseek-r1",
    "gemini-flash-2.5": "openrouter/google/gemini-2.5-flash",
    "gemini-2.5-flash": "openrouter/google/gemini-2.5-flash",
    "gemini-2.5-pro": "openrouter/google/gemini-2.5-pro",
    "grok-4": "openrouter/x-ai/grok-4",
    "kimi-k2": "openrouter/moonshotai/kimi-k2",
    "qwen3": "openrouter/qwen/qwen3-235b-a22b",
}
"""Short names that people and existing frontends send. Those of retired models name their successors; a full
`provider/model` name is never changed."""


def unalias(name: str) -> str:
    """The full name that a short one stands for; any other name as it is."""
    bare = name.lower()
    if bare in ALIASES:
        return ALIASES[bare]
    return f"anthropic/{name}" if bare.startswith("claude-") and "/" not in name else name


def look_up(name: str) -> Model:
    """What is known of a model, whichever provider serves it; small limits and no images for an unknown one."""
    return MODELS.get(family(name), UNKNOWN)


def family(name: str) -> str:
    """The name that a model is known by here; `other` for an unknown one."""
    maker_name = name.lower().rpartition("/")[2].replace(".", "-")
    return max((key for key in MODELS if begins(maker_name, key)), key=len, default="other")


def begins(name: str, key: str) -> bool:
    return name.startswith(key) and name[len(key) : len(key) + 1] in ("", "-", ":", "@")
