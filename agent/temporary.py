"""What a model is shown for one turn beside the conversation: the browser as it stands, and images. Pure."""

from collections.abc import Iterable
from typing import Any

import orjson

from agent.models import Model
from agent.thread_manager import as_dict, model_content, text_of
from services.messages import Message

BROWSER = "This is the current state of the browser:\n"
SHOWN_CHARS = 40_000
IMAGE_FIELDS = ("screenshot_base64", "image_url", "screenshot_url", "image")
NOT_SEEN = "(An image was put here that this model cannot see.)"


def shown(beside: Iterable[Message], model: Model) -> list[dict[str, Any]]:
    """As messages of the user, in order; without images for a model that does not see."""
    contents = (SHOWN[stored.type](stored, model) for stored in beside)
    return [{"role": "user", "content": content} for content in contents if content]


def browser_state(stored: Message, model: Model) -> list[dict[str, Any]]:
    state = stored.content if isinstance(stored.content, dict) else as_dict(stored.content)
    told = {name: value for name, value in state.items() if name not in IMAGE_FIELDS}
    text = {"type": "text", "text": BROWSER + orjson.dumps(told).decode()[:SHOWN_CHARS]}
    url = picture(state)
    return [text, {"type": "image_url", "image_url": {"url": url}}] if url and model.images else [text]


def picture(state: dict[str, Any]) -> str:
    """The address of a state's screenshot, which may stand in it whole."""
    value = next((state[name] for name in IMAGE_FIELDS if state.get(name)), "")
    if not isinstance(value, str) or not value or value.startswith(("http:", "https:", "data:")):
        return value if isinstance(value, str) else ""
    return f"data:image/jpeg;base64,{value}"


def image(stored: Message, model: Model) -> Any:
    content = model_content(as_dict(stored.content).get("content"), "user")
    if not isinstance(content, list):
        return content[:SHOWN_CHARS] if content else None
    words = text_of(content)[:SHOWN_CHARS]
    text = [{"type": "text", "text": words}] if words else []
    pictures = [part for part in content if part["type"] != "text"]
    return [*text, *(pictures if model.images else [{"type": "text", "text": NOT_SEEN}])]


SHOWN = {"browser_state": browser_state, "image_context": image}
