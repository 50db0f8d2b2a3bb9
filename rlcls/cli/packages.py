"""Imports what a run needs only later, so that a package that is missing or broken is reported before it trains."""

from __future__ import annotations

import importlib

from rlcls._errors import UserError, install, one_line

# They write checkpoints, the replay's segments, and the picture at the end.
_LATER = ("orbax.checkpoint", "zstandard", "matplotlib.figure")


def import_all(*, tensorboard: bool) -> None:
    """Imports the packages of checkpoints and pictures.

    Args:
      tensorboard: whether the run writes TensorBoard events, too.

    Raises:
      UserError: a package is missing, or raises an exception when it is imported.
    """
    for name in (*_LATER, *["tensorboardX"] * tensorboard):
        try:
            importlib.import_module(name)
        except Exception as error:  # a package that does not fit another one can raise any exception
            raise UserError(
                f"{name} cannot be imported ({type(error).__name__}: {one_line(error)}); "
                f"{install('train', '--upgrade ')} installs versions that fit"
            ) from error
