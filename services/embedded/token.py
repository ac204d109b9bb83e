"""`python -m services.embedded.token ACCOUNT`: prints a signed token, with DATABASE_URL and JWT_SECRET from settings.

A process of its own, so that the supervisor imports nothing of the application.
"""

import asyncio
import sys
from datetime import timedelta

import asyncpg

from services.accounts import account_named
from services.settings import load
from services.tokens import sign_access_token

LIFETIME = timedelta(days=30)


async def token(name: str) -> str:
    settings = load()
    conn = await asyncpg.connect(settings.postgres.url.get_secret_value())
    try:
        account = await account_named(conn, name)
    finally:
        await conn.close()
    return sign_access_token(settings.auth.secret.get_secret_value(), account.account_id, lifetime=LIFETIME)


if __name__ == "__main__":
    sys.stdout.write(asyncio.run(token(sys.argv[1])) + "\n")
