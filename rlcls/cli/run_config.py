"""Reads from a run's configuration its folder, the share of each process, and its games."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlcls._errors import UserError, one_line
from rlcls.runs.identity import identity
from rlcls.runs.lanes import is_compiled, seeds


def run_dir(config: DictConfig, name: str) -> Path:
    """The folder of a run: the option `run_dir`, or runs/<agent>-<loss>-<name>-s<seed>-<identity>.

    Args:
      config: the run's configuration.
      name: the environment's name.

    Raises:
      UserError: `run_dir` begins with ~, and the user it names has no home.
    """
    if config.run_dir:
        try:
            return Path(config.run_dir).expanduser()
        except RuntimeError as error:
            raise UserError(f"run_dir={config.run_dir}: {one_line(error)}") from error
    chosen = config.choices
    first, last = seeds(config)[0], seeds(config)[-1]
    seed = f"s{first}" if first == last else f"s{first}-{last}"
    parts = chosen.agent, chosen.loss, name.replace("/", "-"), seed, identity(plain_dict(config))
    return Path("runs") / "-".join(parts)


def plain_dict(config: DictConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def share(config: DictConfig, host: int, hosts: int) -> DictConfig:
    """The configuration of one of several processes, with its share of environments, replay and data.

    Raises:
      UserError: an amount cannot be divided among them, or the loop runs in one process only.
    """
    if hosts == 1:
        return config
    if is_compiled(config):
        raise UserError("loop=compiled trains in one process, on several devices with mesh.data=N")
    own = copy.deepcopy(config)
    for option in ("env.num_envs", "replay.capacity", "replay.min_size", "training.batch_size"):
        # An offline run has no replay. Its data set divides itself, and only process 0 steps environments, to evaluate.
        amount = (
            OmegaConf.select(config, option)
            if "replay" in config or option == "training.batch_size"
            else None
        )
        if amount is None:
            continue
        if amount % hosts:
            raise UserError(f"{option}={amount} cannot be divided among {hosts} processes")
        if option != "training.batch_size":  # the loop divides it
            OmegaConf.update(own, option, amount // hosts)
    if "data" in config:
        OmegaConf.update(own, "data", {"host": host, "hosts": hosts}, force_add=True)
    return own


def games(config: DictConfig) -> dict[str, DictConfig]:
    """The configuration in which each game of a run is played, by the name of the game.

    The option `env.game` is set to the name, or `env.task` to its part after the last slash. `env.number` is set to the
    place in `data.games`. A run of one game, or one whose `env.number` is given, has one configuration, its own, under
    an empty name.
    """
    names = OmegaConf.select(config, "data.games")
    option = next((option for option in ("game", "task") if option in config.env), None)
    if not OmegaConf.is_list(names) or not names or "number" in config.env or option is None:
        return {"": config}
    played = {}
    for number, name in enumerate(names):
        value = name if option == "game" else name.rpartition("/")[2]
        played[name] = OmegaConf.merge(config, {"env": {option: value, "number": number}})
    return played  # type: ignore[return-value]
