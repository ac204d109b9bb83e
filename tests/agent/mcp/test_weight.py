import subprocess
import sys

MODULES = "agent.mcp.discovery, api.routes.mcp, worker.actors"


def test_the_sdk_is_not_loaded_before_a_server_is_used() -> None:
    """It costs 30 MB and 1 s, and an idle worker is to stay under 100 MB (docs/adr/0007-mcp.md)."""
    loads = f"import sys, {MODULES}; sys.exit('mcp' in sys.modules or 'mcp_types' in sys.modules)"
    subprocess.run([sys.executable, "-c", loads], check=True, env={"BROKER": "redis"})
