"""What stands outside one sandbox: starts it, watches its memory and disk, and ends with it.

A process of its own, which belongs to no worker: only the standard library, few imports, no event loop, and relative
imports, since the system's python3 runs it as a package of its own. It reads its configuration from standard input,
says `ready` or what is wrong on standard output, and goes on in the background.
"""
