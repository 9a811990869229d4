"""Text for people, in which everything that a peer chose is made harmless.

A peer chooses the name of its Unix socket, the source in a PROXY header, and the bytes that errors and messages quote.
With a newline it could forge a line of the log, with an escape sequence change what a terminal shows, and with a byte
that is not UTF-8 prevent the line from being written.
"""


def printable(text: str) -> str:
    r"""``text`` on one line, with unprintable characters escaped: ``\n``, ``\x1b``, ``\u2028``. A byte that is not
    UTF-8, which `os.fsdecode` decodes to a surrogate, becomes ``\xff`` again.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        character = chr(ord(character) - 0xDC00)
    return character.encode("unicode_escape").decode("ascii")
