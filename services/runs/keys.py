"""Every Redis key and channel of a run (CONTRACT section 2); nobody else spells one."""

from uuid import UUID

STOP = b"STOP"


def responses(run_id: UUID) -> str:
    return f"agent_run:{run_id}:responses"


def news(run_id: UUID) -> str:
    return f"agent_run:{run_id}:new_response"


def control(run_id: UUID) -> str:
    return f"agent_run:{run_id}:control"


def instance_control(run_id: UUID, instance_id: str) -> str:
    return f"agent_run:{run_id}:control:{instance_id}"


def lock(run_id: UUID) -> str:
    return f"agent_run_lock:{run_id}"


def active(instance_id: str, run_id: UUID) -> str:
    return f"active_run:{instance_id}:{run_id}"
