"""Files that a page has the browser download: they come into the workspace."""

import asyncio
from typing import Any

from playwright.async_api import CDPSession

FOLDER = "/workspace/downloads"
FINISH_WITHIN = 5.0
MOST_TOLD = 10


class Downloads:
    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.changed = asyncio.Event()

    @classmethod
    async def allowed(cls, root: CDPSession) -> "Downloads":
        """Have them land in the workspace for as long as this session of the browser lasts."""
        downloads = cls()
        root.on("Browser.downloadWillBegin", downloads.begun)
        root.on("Browser.downloadProgress", downloads.went_on)
        wanted = {"behavior": "allow", "downloadPath": FOLDER, "eventsEnabled": True}
        await root.send("Browser.setDownloadBehavior", wanted)
        return downloads

    def begun(self, told: dict[str, Any]) -> None:
        if len(self.names) < MOST_TOLD:
            self.names[str(told["guid"])] = str(told["suggestedFilename"])[:200]

    def went_on(self, told: dict[str, Any]) -> None:
        if str(told["guid"]) in self.names:
            self.states[str(told["guid"])] = str(told["state"])
            self.changed.set()

    @property
    def open(self) -> bool:
        return any(self.states.get(guid) not in ("completed", "canceled") for guid in self.names)

    async def finish(self) -> None:
        """Wait a little for those under way."""
        try:
            async with asyncio.timeout(FINISH_WITHIN):
                while self.open:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return

    @property
    def told(self) -> list[str]:
        words = {"completed": f"is in {FOLDER}", "canceled": "was broken off"}
        return [
            f"The download {name} {words.get(self.states.get(guid, ''), 'had not ended, and was broken off')}."
            for guid, name in self.names.items()
        ]
