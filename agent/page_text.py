"""HTML → the text that a reader would read. A script of its own: HTML on stdin, JSON on stdout.

Run apart from the worker, which then neither carries the libraries (16 MB) nor hangs or falls with a hostile page.
"""

import json
import os
import resource
import sys

from trafilatura import bare_extraction, html2txt, load_html

CPU_SECONDS = 10
MEMORY_BYTES = 1024**3
MAX_CHARS = 1_000_000


def main() -> None:
    """`page_text.py URL [CHARSET]`: without a charset the page itself is to tell."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    os.nice(5)
    url, *charset = sys.argv[1:]
    page = sys.stdin.buffer.read()
    json.dump(extract(page.decode(charset[0], "replace") if charset else page, url), sys.stdout)


def extract(page: str | bytes, url: str) -> dict[str, str]:
    """Title, date and main text as Markdown; a page without an article gives all of its text."""
    tree = load_html(page)
    if tree is None:
        tree = load_html(as_document(page))
    if tree is None:
        return {"text": ""}
    tree.make_links_absolute(url, handle_failures="ignore")
    found = bare_extraction(
        tree, url, include_formatting=True, include_links=True, include_comments=False, with_metadata=True
    )
    told = {name: str(getattr(found, name, None) or "") for name in ("title", "date", "text")}
    text = told["text"] or html2txt(tree)
    return {**told, "text": text[:MAX_CHARS]}


def as_document(page: str | bytes) -> str:
    """Browsers show a fragment too, which trafilatura does not take for HTML."""
    text = page.decode("utf-8", "replace") if isinstance(page, bytes) else page
    return f"<html><body><div>{text}</div></body></html>"


if __name__ == "__main__":
    main()
