"""What a run has learnt, from Python: `agent, acting, spec = rlcls.trained.load("runs/...")`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree
from omegaconf import DictConfig

from rlcls._errors import UserError
from rlcls.agents.base import Agent
from rlcls.cli import build, evaluators
from rlcls.envs.base import HostEnv
from rlcls.runs import checkpoint as checkpoints
from rlcls.runs import read_config
from rlcls.runs.lanes import is_compiled, lanes
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


def load(run_dir: str | os.PathLike[str], checkpoint: str | int = "latest", lane: int = 0) -> Trained:
    """Loads the weights of a run, also while it goes on; the replay may be missing.

    Args:
      run_dir: the run folder.
      checkpoint: "latest", "best", or the agent steps (updates, offline) of a checkpoint.
      lane: which of the seeds and settings of a run that trained several.

    Raises:
      UserError: it is no run folder, or has no such checkpoint or lane; an offline run that does not evaluate needs its
        data.
    """
    config = lane_config(read_config(Path(run_dir)), lane)
    with contextlib.closing(build.one_environment(config)) as env:
        return read(config, env, Path(run_dir), str(checkpoint), lane)[0]


def lane_config(config: DictConfig, lane: int) -> DictConfig:
    """The configuration of a lane; of a run of one, its own.

    Raises:
      UserError: there are fewer lanes.
    """
    configs = lanes(config)
    if not 0 <= lane < len(configs):
        raise UserError(f"lane={lane}: the run has {len(configs)}, 0 to {len(configs) - 1}")
    return configs[lane]


def read(
    config: DictConfig, env: HostEnv, run_dir: Path, wanted: str, lane: int = 0
) -> tuple[Trained, checkpoints.Checkpoint, list[str]]:
    """The agent of a configuration with the weights of a checkpoint.

    Args:
      config: the run's configuration, from `lane_config`.
      env: from `rlcls.cli.build.one_environment`.
      run_dir: the run folder.
      wanted: "latest", "best", or the steps of a checkpoint.
      lane: which of several lanes.

    Returns:
      The agent, its checkpoint, and remarks about checkpoints that could not be read.

    Raises:
      UserError: the run has no such checkpoint, or its agent cannot be built.
    """
    spec = evaluators.trained_spec(config, env)
    agent = build.agent(config, spec)
    acting = build.acting_like(config, agent)
    if is_compiled(config):
        chosen, tree, remarks = checkpoints.read(run_dir, wanted, {"acting": {str(lane): acting}})
        return Trained(agent, tree["acting"][str(lane)], spec), chosen, remarks
    chosen, tree, remarks = checkpoints.read(run_dir, wanted, {"acting": acting})
    return Trained(agent, tree["acting"], spec), chosen, remarks
