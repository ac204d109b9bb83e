#!/bin/sh
# Playwright's driver, which reads what hostile browsers say: without our environment, without much memory, and in a
# session of its own, so that a signal to the worker's group does not take it from the calls under way.
exec env -i PATH="$PATH" LANG=C.UTF-8 PW_LANG_NAME=python setsid \
    "$(dirname "$1")/../node" --max-old-space-size=384 "$@"
