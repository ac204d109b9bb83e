"""The task list: the newest one in the thread is what counts, so it needs no table."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from agent.context import Calling
from agent.tools.base import tool

MARKS = {"pending": "[ ]", "in_progress": "[~]", "done": "[x]"}


class Task(BaseModel):
    title: Annotated[str, Field(min_length=1, max_length=500)]
    status: Literal["pending", "in_progress", "done"] = "pending"


@tool(body="tasks", repeatable=True)
async def task_list(
    calling: Calling,
    tasks: Annotated[list[Task], Field(max_length=200, description="All tasks in order, replacing the earlier list.")],
) -> str:
    """Write down the plan of a longer task, and mark what is done as you go. The person sees the list."""
    done = sum(task.status == "done" for task in tasks)
    return "\n".join([f"{done} of {len(tasks)} done", *(f"{MARKS[task.status]} {task.title}" for task in tasks)])
