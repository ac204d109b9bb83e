"""The agent inside a sandbox: its first process, which runs commands and touches files for whoever connects.

Only the standard library, since the system's python3 runs it, packed into one archive by `services.sandbox.packing`;
and relative imports, since there it is a package of its own. Each connection is one call: a JSON frame asks, data
frames go both ways, a JSON frame answers. Closing the connection ends what the call had begun.
"""
