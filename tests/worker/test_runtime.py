import os
import subprocess
import sys

from services.embedded.environment import CHECKOUT
from services.settings import Settings


def test_a_worker_that_cannot_open_what_its_runs_need_ends_instead_of_keeping_their_messages(
    settings: Settings,
) -> None:
    environment = {
        **os.environ,
        "DATABASE_URL": settings.postgres.url.get_secret_value(),
        "REDIS_URL": settings.redis.dsn,
        "BROKER": "redis",
        "BROKER_REDIS_URL": settings.broker_redis_url,
        "ALL_PROXY": "socks5://127.0.0.1:1",  # needs a package that is not there
    }
    command = [sys.executable, "-m", "dramatiq", "worker", "--processes", "1", "--threads", "2"]
    command += ["--worker-fork-timeout", "3000"]  # so long the master waits for one that ends while it boots
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, timeout=100, text=True)
    assert ended.returncode
    assert "worker.died" in ended.stderr
    assert "SOCKS" in ended.stderr
