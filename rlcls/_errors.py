"""Errors that the user can correct, printed as one line each."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class UserError(Exception):
    """A mistake in what the user asked for. The message is one line; a command prints it and exits with 2."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its class if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def class_name(value: Any) -> str:
    """The module and name of the class of `value`.

    >>> class_name([])
    'builtins.list'
    """
    return f"{type(value).__module__}.{type(value).__qualname__}"


def listed(names: Sequence[str]) -> str:
    """The names in one phrase.

    >>> listed(["send", "recv", "close"])
    'send, recv and close'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def check_choice(what: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises a ValueError, which calls the value `what`, if it is none of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(str, choices))}, not {value}")


def install(extra: str, flags: str = "") -> str:
    """The commands that install rlcls with an extra, such as data: from the index, and in a checkout."""
    return (
        f'pip install {flags}"rlcls[{extra}]", or in a checkout of rlcls pip install {flags}-e ".[{extra}]"'
    )


def command(run: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Runs a command of the package.

    Args:
      run: the command, given its arguments; returns its exit code.
      argv: its arguments, None for the process's.

    Returns:
      The exit code: 2, and one line on stderr, for a mistake of the user's, for output that cannot be written, and for
      too little memory or too few open files; 130 for a Ctrl-C that it did not take; 141 when whoever reads the output
      has read enough, as `head` does.
    """
    _open_streams()
    os.environ["MPLBACKEND"] = "Agg"  # every picture is a file, whatever window system the user has
    try:
        _check_working_directory()
        arguments = sys.argv[1:] if argv is None else argv
        if arguments[:1] == ["--version"]:
            from rlcls import __version__

            print(f"rlcls {__version__}")
            return 0
        code = run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _refuse(str(error), error)
    except ModuleNotFoundError as error:
        if (error.name or "rlcls").partition(".")[0] == "rlcls":  # a fault of ours
            raise
        return _refuse(f"{error.name} is not installed; the commands need {install('atari')}", error)
    except (MemoryError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not line.startswith("RESOURCE_EXHAUSTED"):  # JAX's word for it
            raise
        return _refuse(f"not enough memory: {line}", error)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return _refuse(f"{error.strerror}; ulimit -n sets how many a process may open", error)
        try:
            print(flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else closing it raises again
            if isinstance(error, BrokenPipeError):
                return 141
            return _refuse(f"cannot write to the standard output: {error.strerror}", error)
        raise  # another file or pipe, such as that of a video's encoder


def _refuse(line: str, error: BaseException) -> int:
    """Prints the line, and the notes that the error got on its way."""
    print("; ".join([f"error: {line}", *getattr(error, "__notes__", [])]), file=sys.stderr)
    return 2


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except OSError:
        raise UserError("the working directory does not exist any more; change to another") from None


def _open_streams() -> None:
    """Makes the standard streams writable: what is closed discards, and what has no such letter shows its number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # The file lives as long as the process. Without it, the next file that is opened takes the stream's number.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


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
    close = difflib.get_close_matches(name.lower(), folded, n=1) or _beginning_like(name.lower(), folded)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    if most is not None:
        similar = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.4)
        names = sorted(folded[candidate] for candidate in similar)
    return f"{hint} ({', '.join(names)})" if names else hint


def _beginning_like(name: str, names: Iterable[str]) -> list[str]:
    """The names that begin almost as `name` reads, such as atari100k for atary."""
    if len(name) < 4 or "." in name:
        return []
    beginnings = {each[: len(name)]: each for each in names}
    return [beginnings[each] for each in difflib.get_close_matches(name, beginnings, n=1, cutoff=0.8)]
