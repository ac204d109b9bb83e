"""`python -m services.embedded COMMAND`: what `./dev` runs once its environment is ready."""

import sys

from services.embedded.cli import main

sys.exit(main(sys.argv[1:]))
