"""What a run has learnt, from Python: `agent, acting, spec = rlcls.trained.load("runs/...")`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from rlcls.agents.base import Agent
from rlcls.cli import build
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
      UserError: it is no run folder, or has no such checkpoint.
    """
    config = read_config(Path(run_dir))
    with contextlib.closing(build.one_environment(config)) as env:
        agent, spec = build.agent(config, env.spec), env.spec
    like = {"acting": build.acting_like(config, agent)}
    _, tree, _ = checkpoints.read(Path(run_dir), str(checkpoint), like)
    return Trained(agent, tree["acting"], spec)
