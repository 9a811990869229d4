"""``python -m iostreamsrv``: the command ``iostreamsrv``."""

from .cli import main

if __name__ == "__main__":
    main()
