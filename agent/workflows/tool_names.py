"""The tools that a TOOL step may name: a list, so that whoever checks a definition need not load the tools."""

TOOL_NAMES = frozenset(
    {
        "create_file",
        "read_file",
        "str_replace",
        "full_file_rewrite",
        "delete_file",
        "list_files",
        "execute_command",
        "start_command",
        "check_command_output",
        "send_input",
        "terminate_command",
        "list_commands",
        "web_search",
        "scrape_webpage",
        "expose_port",
    }
)
"""Not those that speak to a person or put images and pages before a model."""
