"""Text for people: what others have named in it is made harmless, in this one place.

A peer chooses the name of its Unix socket, the source in a PROXY header, and bytes that errors and messages repeat.
With a newline in it a name could pretend to be a line of the log, with an escape sequence change what a terminal
shows, and with a byte that is no UTF-8 fail to be written at all.
"""


def printable(text: str) -> str:
    r"""``text`` on one line, with what cannot be printed as an escape: ``\n``, ``\x1b``, ``\u2028``; a byte that is no
    UTF-8, which `os.fsdecode` makes a surrogate of, is ``\xff`` again.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        character = chr(ord(character) - 0xDC00)
    return character.encode("unicode_escape").decode("ascii")
