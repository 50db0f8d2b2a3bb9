"""Errors that are the user's to mend: one clear line each."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user asked for. The message is one line; a command prints it and exits with 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`: the nearest valid name, and all of them.

    >>> "unknown loss 'hlgaus'" + nearest("hlgaus", ["mse", "hlgauss"])
    "unknown loss 'hlgaus'; did you mean 'hlgauss'? (hlgauss, mse)"
    >>> "unknown loss 'zzz'" + nearest("zzz", ["mse", "hlgauss"])
    "unknown loss 'zzz' (hlgauss, mse)"
    """
    names = sorted(names)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    return f"{hint} ({', '.join(names)})" if names else hint
