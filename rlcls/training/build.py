"""The objects of a configuration: environments, network, agent."""

from __future__ import annotations

import os
from typing import Any

import gymnasium.vector
from omegaconf import DictConfig, OmegaConf

from rlcls._errors import UserError
from rlcls.envs.atari import Atari

from .config import build


def environment(config: DictConfig) -> gymnasium.vector.VectorEnv:
    """The environments to train in."""
    return build(config, "env")


def evaluation_environment(
    config: DictConfig, env: gymnasium.vector.VectorEnv
) -> tuple[gymnasium.vector.VectorEnv, float]:
    """Environments of the evaluation protocol, and its probability of a random action.

    One for each episode up to 32 at a time: they step together, and the longest decides how long it takes.
    """
    num_envs = min(int(config.eval.episodes), 32)
    epsilon = config.eval.epsilon
    if epsilon is None:
        epsilon = getattr(getattr(env, "protocol", None), "evaluation_epsilon", 0.0)
    if isinstance(env, Atari):
        threads = config.env.num_threads or num_envs  # all cores: nothing is learnt meanwhile
        return Atari(env.game, num_envs, env.protocol.evaluation(), threads), float(epsilon)
    return build(config, "env", num_envs=num_envs), float(epsilon)


def agent(config: DictConfig, env: gymnasium.vector.VectorEnv) -> tuple[Any, str]:
    """The agent for an environment's observations and actions, and a line about its network.

    Raises:
      UserError: the parts do not fit together.
    """
    import jax
    from flax import nnx

    from rlcls import networks

    shape = env.single_observation_space.shape or ()
    num_actions = int(env.single_action_space.n)  # type: ignore[attr-defined]
    head = build(config, "loss")
    make_backbone = build(config, "backbone")
    # Dueling streams are the network's, though a user looks for them among the agent's options.
    own = {"agent": {name: value for name, value in config.agent.items() if name != "dueling"}}

    def make_network(rngs: nnx.Rngs) -> networks.QNetwork:
        backbone = make_backbone(shape, rngs=rngs)
        return networks.QNetwork(backbone, head, num_actions, dueling=config.agent.dueling, rngs=rngs)

    try:
        made = build(OmegaConf.create(own), "agent")(make_network, head)
        state = jax.eval_shape(made.init, jax.random.key(0))
        if config.training.act_with_target and not hasattr(state, "target_params"):
            raise UserError(
                "training.act_with_target=true needs an agent with a target network, and this one has none: "
                "give training.act_with_target=false"
            )
        # What the network cannot look at is said now, and not after the replay has filled.
        seen = jax.ShapeDtypeStruct((1, *shape), env.single_observation_space.dtype)
        jax.eval_shape(made.act, state.params, state.network_state, seen, jax.random.key(0), 0.0)
    except (TypeError, ValueError) as error:
        raise UserError(str(error).splitlines()[0]) from error
    count = networks.count_parameters(state.params)
    return made, f"{config.choices.backbone}, {count:,} parameters"


def check_memory(config: DictConfig) -> None:
    """Refuses a replay that this machine cannot hold, before anything is made.

    Raises:
      UserError: it is larger than the memory.
    """
    if not str(config.env._target_).startswith("rlcls.envs.atari"):
        return
    needed = int(config.replay.capacity) * 84 * 84
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        fits = int(memory * 0.6 / (84 * 84)) // 10_000 * 10_000
        raise UserError(
            f"replay.capacity={config.replay.capacity} needs {needed / 2**30:.1f} GiB and this machine has "
            f"{memory / 2**30:.1f}; {fits} would fit"
        )
