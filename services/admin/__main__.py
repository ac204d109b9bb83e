"""`python -m services.admin GROUP COMMAND`: settings come from the environment and `.env`."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is begun while modules are loaded: a Ctrl-C is no traceback

from services import log  # noqa: E402 - behind the line above
from services.admin.cli import main  # noqa: E402 - as well

signal.signal(signal.SIGINT, signal.default_int_handler)
log.silence()
sys.exit(main(sys.argv[1:]))
