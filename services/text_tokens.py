"""How many tokens a text is, about. Pure.

It must not be far too low for any text: a quarter of the characters is up to 2.8 times too low for Chinese, JSON and
base64.
"""

CHARS_OF_PROSE = 3.5
CHARS_OF_CODE = 2.5
CHARS_OF_NOISE = 1.5
BYTES_OF_OTHERS = 2.5
PROSE_WORD = 9.0
LONGEST_WORD = 16.0


def of_text(text: str) -> int:
    """ASCII by how far apart its gaps are: prose, then code and JSON, then what has no words; the rest by its bytes."""
    if not text:
        return 0
    if not text.isascii():
        return int(len(text.encode(errors="replace")) / BYTES_OF_OTHERS) + 1
    word = len(text) / (text.count(" ") + text.count("\n") + 1)
    if len(text) < LONGEST_WORD * 4 or word <= PROSE_WORD:
        return int(len(text) / CHARS_OF_PROSE) + 1
    return int(len(text) / (CHARS_OF_CODE if word <= LONGEST_WORD else CHARS_OF_NOISE)) + 1
