"""Errors that the user can correct, printed as one line each."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any


class UserError(Exception):
    """A mistake in what the user asked for. The message is one line; a command prints it and exits with 2."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its class if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_choice(what: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises a ValueError, which calls the value `what`, if it is none of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(str, choices))}, not {value}")


def command(run: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Runs a command of the package.

    Args:
      run: the command, given its arguments; returns its exit code.
      argv: its arguments, None for the process's.

    Returns:
      The exit code: 2, and one line on stderr, for a mistake of the user's; 130 for a Ctrl-C that it did not take;
      141 when whoever reads the output has read enough, as `head` does.
    """
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "rlcls").partition(".")[0] == "rlcls":  # a fault of ours
            raise
        print(
            f'error: {error.name} is not installed; the commands need pip install "rlcls[atari]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else closing it raises again
            return 141
        raise  # another pipe, such as that of a video's encoder


def nearest(name: str, names: Iterable[str], most: int | None = None) -> str:
    """The end of an error message about an unknown `name`: the nearest valid name, and all of them.

    Args:
      name: the unknown name.
      names: the valid names.
      most: how many names to list, the most similar ones; None lists all.

    >>> "unknown loss 'hlgaus'" + nearest("hlgaus", ["mse", "hlgauss"])
    "unknown loss 'hlgaus'; did you mean 'hlgauss'? (hlgauss, mse)"
    >>> "unknown loss 'zzz'" + nearest("zzz", ["mse", "hlgauss"])
    "unknown loss 'zzz' (hlgauss, mse)"
    """
    names = sorted(names)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    if most is not None:
        similar = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.4)
        names = sorted(folded[candidate] for candidate in similar)
    return f"{hint} ({', '.join(names)})" if names else hint
