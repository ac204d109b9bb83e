"""A browser in the project's sandbox: Chromium is a background job there, driven from here for one action at a time.

Playwright is an optional extra. Only `tab` and `session` import it; `driver` loads them when a run first needs them.
"""
