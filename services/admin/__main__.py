"""`python -m services.admin GROUP COMMAND`: settings come from the environment and `.env`."""

import sys

from services import log
from services.admin.cli import main

log.silence()
sys.exit(main(sys.argv[1:]))
