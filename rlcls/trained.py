"""What a run has learnt, from Python: `agent, acting, spec = rlcls.trained.load("runs/...")`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree
from omegaconf import DictConfig

from rlcls.agents.base import Agent
from rlcls.cli import build
from rlcls.envs.base import HostEnv
from rlcls.runs import checkpoint as checkpoints
from rlcls.runs import read_config
from rlcls.spec import Spec


class Trained(NamedTuple):
    """A trained agent: `agent.act(acting, observations, key, epsilon)` gives one action for each observation.

    Attributes:
      agent: the functions of the run's agent.
      acting: the first argument of `agent.act`, as saved: the network that the run evaluates.
      spec: the observations that the agent takes, without a batch axis, and the actions that it gives.
    """

    agent: Agent[Any]
    acting: PyTree
    spec: Spec


def load(run_dir: str | os.PathLike[str], checkpoint: str | int = "latest") -> Trained:
    """Loads the weights of a run, also while it goes on; the replay may be missing.

    Args:
      run_dir: the run folder.
      checkpoint: "latest", "best", or the agent steps (updates, offline) of a checkpoint.

    Raises:
      UserError: it is no run folder, or has no such checkpoint; an offline run that does not evaluate needs its data.
    """
    config = read_config(Path(run_dir))
    with contextlib.closing(build.one_environment(config)) as env:
        return read(config, env, Path(run_dir), str(checkpoint))[0]


def read(
    config: DictConfig, env: HostEnv, run_dir: Path, wanted: str
) -> tuple[Trained, checkpoints.Checkpoint, list[str]]:
    """The agent of a configuration with the weights of a checkpoint.

    Args:
      config: the run's configuration.
      env: from `rlcls.cli.build.one_environment`.
      run_dir: the run folder.
      wanted: "latest", "best", or the steps of a checkpoint.

    Returns:
      The agent, its checkpoint, and remarks about checkpoints that could not be read.

    Raises:
      UserError: the run has no such checkpoint, or its agent cannot be built.
    """
    spec = build.trained_spec(config, env)
    agent = build.agent(config, spec)
    chosen, tree, remarks = checkpoints.read(run_dir, wanted, {"acting": build.acting_like(config, agent)})
    return Trained(agent, tree["acting"], spec), chosen, remarks
