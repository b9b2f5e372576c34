"""The names of a file's columns: whether the wanted ones are there, once each."""

from collections.abc import Iterable

from scaling_fl.data.readers.batches import Wanted
from scaling_fl.errors import UserError


def check_columns(path: str, header: list[str], wanted: Wanted) -> None:
    """Raises `UserError` unless the header has each wanted column exactly once."""
    for name, key in wanted.items():
        if header.count(name) != 1:
            start = f"{path} has" if key is None else f"{key}={name!r}: {path} has"
            if name in header:
                raise UserError(f"{start} {header.count(name)} columns named {name}; rename one")
            found = listed(header)
            alike = next((other for other in header if plain(other) == plain(name)), None)
            hint = "" if alike is None else f" (did you mean {alike!r}?)"
            remedy = f"choose from {found}" if key is not None else f"it has {found}; rename the one that is meant"
            raise UserError(f"{start} no column {_shown(name)}{hint}; {remedy}")


def plain(name: str) -> str:
    """What is left of a column's name if programs may change its case, quote it, or put a byte order mark before it."""
    return name.strip('\ufeff" \t\r\n').casefold()


def _shown(name: str) -> str:
    """The name, quoted if it is empty or has characters at its ends, or in it, that can't be seen."""
    return name if name and name == name.strip() and name.isprintable() else repr(name)


def listed(names: Iterable[str]) -> str:
    text = ", ".join(map(_shown, names))
    return (text if len(text) <= 300 else f"{text[:300]} …") or "none"
