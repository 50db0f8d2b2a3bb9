"""Builds the objects of a configuration: environment, data, agent, loop."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
import jax
import numpy as np
from hydra.errors import HydraException
from jaxtyping import Shaped
from omegaconf import DictConfig, OmegaConf

from rlcls import networks
from rlcls._errors import UserError, class_name, nearest, one_line
from rlcls.agents.base import Agent, check_agent
from rlcls.datasets import Mixture, Transitions
from rlcls.envs.base import HostEnv
from rlcls.envs.gymnax import as_jax_env
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.envs.one_of_many import OneOfMany
from rlcls.envs.wrappers import as_host_env
from rlcls.runs.identity import leaves
from rlcls.runs.lanes import is_compiled, seeds, settings
from rlcls.spec import Spec
from rlcls.training import Compiled, OfflineProgram, Placement, Program
from rlcls.training.batches import check_structure
from rlcls.training.loop import Dataset, Loop

from . import resources
from .compose import options_of
from .run_config import games, plain_dict

# Hydra 1.4 asks which targets may run. Here any target may, because a class of the user's own is the user's own code.
_UNCHECKED = getattr(hydra.utils, "UNSAFE_DISABLE_EXECUTION_CHECKS", None)
_ANY_TARGET: dict[str, Any] = {"_execution_whitelist_": _UNCHECKED} if _UNCHECKED else {}


def build(config: DictConfig, section: str, *positional: Any, **arguments: Any) -> Any:
    """The object that `section` of a configuration describes. If it is a partial one, it is called with the arguments.

    Raises:
      UserError: its class cannot be imported, or does not take these options or arguments.
    """
    options: Any = OmegaConf.to_container(OmegaConf.select(config, section))
    for option, target in leaves(options):
        if option.rpartition(".")[2] == "_target_":
            try:
                pkgutil.resolve_name(target)
            except (ImportError, AttributeError, ValueError) as error:
                raise UserError(f"{section}.{option}={target}: {one_line(error)}") from error
    try:
        made = hydra.utils.instantiate(OmegaConf.select(config, section), _convert_="all", **_ANY_TARGET)
        return made(*positional, **arguments) if positional or arguments else made
    except UserError as error:
        # JAX attaches a note of several lines to exceptions that pass through its functions. A new one has no note.
        raise UserError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise _refused(config, section, error) from error
    except HydraException as error:
        cause = error.__cause__
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if cause is None or isinstance(cause, (HydraException, ImportError, TypeError, ValueError)):
            raise UserError(f"{section}: {_sentence(cause or error)}") from error
        raise


def environment(config: DictConfig) -> HostEnv:
    """The environments to train in. With `env.number` they are one of several games; see `OneOfMany`.

    A `JaxEnv` or an environment of gymnax becomes `env.num_envs` environments.
    """
    options = {key: value for key, value in config.env.items() if key != "number"}
    takes = options_of(str(options["_target_"]))
    if takes is not None and "num_envs" not in takes:
        options.pop("num_envs", None)

    def make(num_envs: int) -> Any:
        return build(OmegaConf.create({"env": {**options, "num_envs": num_envs}}), "env")

    made = build(OmegaConf.create({"env": options}), "env")
    if (pure := as_jax_env(made)) is not None:
        made = JaxVectorEnv(pure, config.env.num_envs, name=str(getattr(made, "name", type(made).__name__)))
    env = as_host_env(made, make)
    return as_host_env(OneOfMany(env, config.env.number)) if "number" in config.env else env


def one_environment(config: DictConfig) -> HostEnv:
    """One environment of a run (of its first game, if there are several), for the spec of its agent.

    It sets `env.num_envs` of the configuration to 1.
    """
    config = next(iter(games(config).values()))
    if "num_envs" in config.env:
        config.env.num_envs = 1
    return environment(config)


def agent(config: DictConfig, spec: Spec) -> Agent[Any]:
    """The agent of a configuration for these observations and actions.

    Raises:
      UserError: the parts do not fit together, or the agent lacks a function of the interface.
    """
    head, vectors = build(config, "loss"), config.agent.get("embeddings")
    options = {"embeddings": _task_vectors(config, vectors)} if isinstance(vectors, str) else {}
    made = build(config, "agent", spec, _backbone(config), head, **options)
    check_agent(made, spec, acts_with_target=acts_with_target(config))
    return made


def acting_like(config: DictConfig, agent: Agent[Any]) -> Any:
    """Structure, shapes and dtypes of the part of the agent that acts, in a run of this configuration."""
    target = acts_with_target(config)
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(lambda key: agent.acting(agent.init(key), target=target), key)


def acts_with_target(config: DictConfig) -> bool:
    """Whether the target network acts instead of the online network."""
    return bool(config.training.get("act_with_target", False))


def describe_network(config: DictConfig, agent: Agent[Any]) -> str:
    """A line about the agent's network."""
    acting = acting_like(config, agent)
    count = networks.count_parameters(getattr(acting, "params", acting))
    return f"{config.choices.backbone}, {count:,} parameters"


def dataset(config: DictConfig) -> Dataset | None:
    """The data set of a configuration; None if the run learns from its own play.

    Raises:
      UserError: it cannot be opened, or is not a data set.
    """
    if "data" not in config:
        return None
    made = build(config, "data")
    missing = [name for name in ("sample", "spec") if not hasattr(made, name)]
    if missing:
        raise UserError(
            f"data: {class_name(made)} has no {' and no '.join(missing)}; a data set has sample and spec"
        )
    return made


def placement(config: DictConfig) -> Placement:
    """The devices of a configuration.

    Raises:
      UserError: the machine has fewer devices, or a rule is not valid.
    """
    options = plain_dict(config)["mesh"]
    if options["data"] is None:  # several processes use all devices, since each must have some in the mesh
        options["data"] = max(1, jax.device_count() // options["model"]) if jax.process_count() > 1 else 1
    try:
        return Placement(**options)
    except ValueError as error:
        raise UserError(one_line(error)) from error


def loop(
    config: DictConfig,
    agent: Agent[Any],
    env: HostEnv,
    data: Dataset | None = None,
    place: Placement | None = None,
) -> Loop:
    """The loop of a configuration.

    Args:
      config: the run's configuration, or the share of one process; see `share`.
      agent: the agent that learns.
      env: the environments of this process.
      data: the data set, if there is one.
      place: the devices; None takes those of the configuration.

    Raises:
      UserError: the parts do not match, or need more memory than there is.
    """
    place = place or placement(config)
    if is_compiled(config) and data is not None:
        _check_is_on_device(data)
    resources.check(config, agent, data.spec if data else env.spec, env.frame_stack, place, data)
    common: dict[str, Any] = {"seed": config.seed, "log_every": config.logging.every}
    if len(place.devices) > 1:  # otherwise a loop of the user's own need not take `placement`
        common["placement"] = place
    if data is not None:
        if "replay" in config:
            raise UserError("a data set needs loop=offline; loop=online learns from what it plays")
        _check_batches(agent, data)
        _check_support(agent, data)
        if not is_compiled(config):
            return build(config, "training", agent, data, **common)
    elif "replay" not in config:
        raise UserError(f"loop={config.choices.loop} needs a data set: data= or data._target_=")
    if is_compiled(config):
        programs = [
            _program(each, agent if not number else None, env, _data_of_seeds(config, each, data))
            for number, each in enumerate(settings(config))
        ]
        try:
            return Compiled(programs, seeds(config), log_every=config.logging.every, placement=place)
        except ValueError as error:
            raise UserError(f"training: {one_line(error)}") from error
    return build(
        config,
        "training",
        agent,
        env,
        build(config, "replay", env),
        exploration=build(config, "exploration"),
        diagnostics_every=config.diagnostics.every,
        diagnostics_batch_size=config.diagnostics.batch_size,
        **common,
    )


def _program(
    config: DictConfig, made: Agent[Any] | None, env: HostEnv, data: Mapping[int, Transitions]
) -> Program | OfflineProgram:
    """The program of one setting.

    Args:
      config: the configuration of the setting.
      made: the agent of the first setting; None for others, which get an agent and an environment of their own.
      env: the environment of the first setting.
      data: the transitions of each seed; empty if the run learns from its own play.

    Raises:
      UserError: the environment is not pure, or the parts do not match.
    """
    if data:
        spec = next(iter(data.values())).spec
        return build(config, "training", made or agent(config, spec), data)
    if made is None:
        env = environment(config)
    pure = getattr(env, "pure", None)
    if pure is None:
        raise UserError(
            f"loop=compiled needs an environment of pure functions (env=minatar, gymnax, probe, pick or a JaxEnv), and "
            f"env={config.choices.env} is stepped by the host"
        )
    agent_ = made or agent(config, pure.spec)
    replay, exploration = build(config, "replay", pure), build(config, "exploration")
    return build(config, "training", agent_, pure, replay, exploration=exploration)


def _check_is_on_device(data: Dataset) -> None:
    """Raises a UserError if a compiled loop cannot sample the data."""
    if not isinstance(data, Transitions):
        several = ", not a mixture of games" if isinstance(data, Mixture) else ""
        raise UserError(
            f"data: loop=compiled samples one recording{several}, as of data=recording, minari, dqn_replay or "
            "rl_unplugged; loop=offline samples any data set"
        )
    if data.sampling != "replacement":
        raise UserError(
            f"data.sampling={data.sampling} needs loop=offline; loop=compiled draws with replacement"
        )


def _data_of_seeds(config: DictConfig, setting: DictConfig, data: Dataset | None) -> dict[int, Transitions]:
    """The transitions that each seed of a setting samples from; empty if the run learns from its own play.

    The run's first seed has the noise and held-out episodes of the data's seed, the next seed those of that seed plus
    1, and so on.

    Args:
      config: the run's configuration.
      setting: one of its settings.
      data: the data of the first setting.
    """
    if data is None:
        return {}
    if setting.data != config.data:
        data = dataset(setting)
    assert isinstance(data, Transitions)
    return {seed: data.with_seed(data.seed + seed - config.seed) for seed in seeds(config)}


def _check_batches(agent: Agent[Any], data: Dataset) -> None:
    """Raises a UserError if the agent cannot be updated from a batch of the data."""
    batch = check_structure(data)
    try:
        state = jax.eval_shape(agent.init, jax.random.key(0))
        jax.eval_shape(agent.update, state, batch, jax.random.key(0))
    except (TypeError, ValueError) as error:
        raise UserError(f"agent: {one_line(error)}") from error


def _check_support(agent: Agent[Any], data: Dataset) -> None:
    """Raises a UserError if the only reward of a game in the data lies outside the support of the head."""
    rewards, head = getattr(data, "sparse_rewards", {}), getattr(agent, "head", None)
    if head is None or not hasattr(head, "clip_fraction"):
        return
    for name, reward in rewards.items():
        with jax.transfer_guard("allow"):
            is_outside = bool(head.clip_fraction(np.full(1, reward, np.float32)))
        if is_outside:
            raise UserError(
                f"the only reward in the data of {name}, {reward:g}, lies outside the support of "
                f"{type(head).__name__}; returns.low and returns.high must enclose it, or data.reward_scale change it"
            )


def _backbone(config: DictConfig) -> Callable[..., Any]:
    """A function with which the agent makes its backbone. Its errors name the section `backbone`."""
    make = build(config, "backbone")

    def make_backbone(*arguments: Any, **options: Any) -> Any:
        try:
            return make(*arguments, **options)
        except (TypeError, ValueError) as error:
            raise _refused(config, "backbone", error) from error

    return make_backbone


def _task_vectors(config: DictConfig, file: str) -> Shaped[np.ndarray, "tasks size"]:
    """The vectors of the tasks in `data.games`, in their order, from an .npz file with an array for each name.

    Raises:
      UserError: the file cannot be read, lacks a task, or has vectors of different sizes.
    """
    option, names = f"agent.embeddings={file}", OmegaConf.select(config, "data.games")
    if not OmegaConf.is_list(names) or not names:
        raise UserError(f"{option} needs data.games=, the names of the tasks")
    try:
        with np.load(Path(file).expanduser()) as arrays:
            if missing := [name for name in names if name not in arrays]:
                raise UserError(
                    f"{option} has no vector of {', '.join(missing)}{nearest(missing[0], arrays)}"
                )
            return np.stack([arrays[name].reshape(-1) for name in names])
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{option}: {one_line(error)}; an .npz file has one vector for each task") from error


def _refused(config: DictConfig, section: str, error: Exception) -> UserError:
    """A UserError that names the section of the object that raised `error`, and its class if it is the user's own."""
    target = str(OmegaConf.select(config, section).get("_target_"))
    own = "" if target.startswith("rlcls.") else f"{target}: "
    return UserError(f"{section}: {own}{one_line(error)}")


def _sentence(error: BaseException) -> str:
    """`one_line`, except that a message of Hydra's, which has line breaks, becomes its first sentence."""
    if isinstance(error, HydraException):
        return " ".join(str(error).split()).partition(". ")[0]
    return one_line(error)
