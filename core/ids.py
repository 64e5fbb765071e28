"""Public ids: a prefix that names the kind and random letters that nobody can guess."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits


def random_letters(count: int) -> str:
    """Return `count` letters and digits from the operating system's random source."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))


def new_id(prefix: str) -> str:
    """Return an id such as `file-3kX...` with 24 random letters (about 142 bits)."""
    return f"{prefix}-{random_letters(24)}"
