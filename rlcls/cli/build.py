"""The objects of a configuration: environment, agent, loop, evaluators."""

from __future__ import annotations

import copy
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import jax
import numpy as np
from hydra.errors import HydraException
from jaxtyping import Shaped
from omegaconf import DictConfig, OmegaConf

from rlcls import networks
from rlcls._errors import UserError, nearest, one_line
from rlcls.agents.base import Agent, check_agent
from rlcls.datasets import Mixture, Transitions
from rlcls.envs.base import HostEnv
from rlcls.envs.gymnax import as_jax_env
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.envs.one_of_many import OneOfMany
from rlcls.envs.wrappers import as_host_env
from rlcls.evaluation import EachLane, EpisodeEvaluator, Periodic
from rlcls.runs.identity import identity, leaves
from rlcls.runs.lanes import is_compiled, seeds, settings
from rlcls.spec import Spec
from rlcls.training import Compiled, OfflineProgram, Placement, Program
from rlcls.training.batches import check_structure
from rlcls.training.loop import Dataset, Loop

from . import resources
from .compose import options_of

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
        # Offline, the data set divides itself, and only one process steps environments, to evaluate.
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


def _backbone(config: DictConfig) -> Callable[..., Any]:
    """A function with which the agent makes its backbone. Its errors name the section `backbone`."""
    make = build(config, "backbone")

    def make_backbone(*arguments: Any, **options: Any) -> Any:
        try:
            return make(*arguments, **options)
        except (TypeError, ValueError) as error:
            raise _refused(config, "backbone", error) from error

    return make_backbone


def acts_with_target(config: DictConfig) -> bool:
    """Whether the target network acts instead of the online network."""
    return bool(config.training.get("act_with_target", False))


def acting_like(config: DictConfig, agent: Agent[Any]) -> Any:
    """Structure, shapes and dtypes of the part of the agent that acts, in a run of this configuration."""
    target = acts_with_target(config)
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(lambda key: agent.acting(agent.init(key), target=target), key)


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
        kind = f"{type(made).__module__}.{type(made).__qualname__}"
        raise UserError(f"data: {kind} has no {' and no '.join(missing)}; a data set has sample and spec")
    return made


def trained_spec(config: DictConfig, env: HostEnv) -> Spec:
    """The observations and actions that the agent of a run was built for.

    A run with data whose evaluators play has started only if data and environment have equal specs, so the
    environment's spec is enough. Otherwise the data set is opened again.

    Raises:
      UserError: the data set is needed and cannot be opened.
    """
    data = None if _plays(config) else dataset(config)
    return data.spec if data else env.spec


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
    if len(place.devices) > 1:  # so that a loop of the user's own need not take `placement`
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
    """The program of one setting. `made` and `env` are those of the first one; for others `made` is None.

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


def evaluators(
    config: DictConfig, agent: Agent[Any], envs: Mapping[str, HostEnv], data: Dataset | None = None
) -> list[Periodic]:
    """The evaluators of a configuration: `eval`, and those of `evals` under their own names.

    Args:
      config: the run's configuration.
      agent: the agent to evaluate.
      envs: the environment of each of `games(config)`. With several games there is an evaluator that plays for each,
        which writes lines of the kind eval.GAME.
      data: the data set, if there is one.

    Raises:
      UserError: an evaluator cannot be built, or the agent cannot play in an environment.
    """
    check_task(config, envs, data)
    made = []
    for kind, section in _evaluator_sections(config).items():
        every, plays = _every(config, section), _plays_in(config, section)
        for name, env in envs.items() if plays else [("", next(iter(envs.values())))]:
            evaluator = _of_each_lane(config, section, agent, env, data)
            made.append(Periodic(f"{kind}.{name}" if name else kind, evaluator, int(every)))
    return made


def check_task(config: DictConfig, envs: Mapping[str, HostEnv], data: Dataset | None) -> None:
    """Compares the spec of the data with those of the environments in which evaluators play.

    Raises:
      UserError: the observations or the actions differ.
    """
    if data is None or not _plays(config):
        return
    for env in envs.values():
        if other := other_task(data.spec, env):
            raise UserError(f"the data has {other}: {_cure(data, envs)}")


def _cure(data: Dataset, envs: Mapping[str, HostEnv]) -> str:
    if len(envs) > 1:
        return (
            "several games need the same observations and actions, for Atari +env.full_action_space=true when they "
            "are recorded, too"
        )
    if isinstance(data.spec.observation, dict) and "game" in data.spec.observation:
        return "+env.number=K makes it the K-th of several games"
    return "choose env= as the data, or eval.every=0"


def episode_evaluator(
    config: DictConfig, agent: Agent[Any], env: HostEnv, behaviour_returns: Mapping[str, float]
) -> EpisodeEvaluator:
    """The evaluator of `python -m rlcls.evaluate`.

    Args:
      config: the run's configuration.
      agent: the agent that plays.
      env: the environment that was learnt from.
      behaviour_returns: mean returns of the recorded episodes, by game; empty for a run without recorded data.
    """
    return EpisodeEvaluator(
        agent,
        env,
        seed=config.seed,
        episodes=config.eval.get("episodes", 10),
        epsilon=config.eval.get("epsilon"),
        data=SimpleNamespace(behaviour_returns=behaviour_returns),
    )


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


def other_task(learnt: Spec, env: HostEnv) -> str:
    """How the spec that an agent learnt differs from that of `env`, in one phrase; empty if they are equal."""
    there, here = _describe(learnt), _describe(env.spec)
    return f"{there}, and {env.name} has {here}" if there != here else ""


def _evaluator_sections(config: DictConfig) -> dict[str, str]:
    """The section of each evaluator, by the kind of its lines of metrics."""
    return {"eval": "eval"} | {name: f"evals.{name}" for name in config.evals}


def _every(config: DictConfig, section: str) -> int:
    return OmegaConf.select(config, section).every


def _plays(config: DictConfig) -> bool:
    """Whether any evaluator plays in the environment."""
    return any(
        _every(config, section) and _plays_in(config, section)
        for section in _evaluator_sections(config).values()
    )


def _plays_in(config: DictConfig, section: str) -> bool:
    return getattr(_class_of(config, section), "plays", True)


def _takes_data(config: DictConfig, section: str) -> bool:
    try:
        return "data" in inspect.signature(_class_of(config, section)).parameters
    except (ValueError, TypeError):
        return False


def _class_of(config: DictConfig, section: str) -> Any:
    """The evaluator's class; None if it cannot be imported, which `build` reports."""
    try:
        return pkgutil.resolve_name(OmegaConf.select(config, section)._target_)
    except (ImportError, AttributeError, ValueError):
        return None


def _describe(spec: Spec) -> str:
    """The observations and actions in one phrase."""
    named = jax.tree_util.tree_leaves_with_path(spec.observation)
    arrays = (f"{jax.tree_util.keystr(path)} {leaf.dtype} {list(leaf.shape)}".strip() for path, leaf in named)
    actions = f"{spec.action.dtype} {list(spec.action.shape)}"
    if spec.num_actions is not None:
        actions = f"{spec.num_actions} for each of {actions}" if spec.action.shape else str(spec.num_actions)
    return f"observations {', '.join(arrays)} and actions {actions}"


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


def _of_each_lane(
    config: DictConfig, section: str, agent_: Agent[Any], env: HostEnv, data: Dataset | None
) -> Any:
    """The evaluator of a section. In a compiled run it evaluates each lane."""
    if not is_compiled(config):
        return _evaluator(config, section, agent_, env, data)
    each = []
    for number, setting in enumerate(settings(config)):
        if number:
            env = environment(setting)
            agent_ = agent(setting, data.spec if data else env.spec)
        of_seeds = _data_of_seeds(config, setting, data)
        first = _evaluator(setting, section, agent_, env, of_seeds.get(config.seed))
        for seed in seeds(config):
            with_seed = getattr(first, "with_seed", None)
            other: Any = OmegaConf.merge(setting, {"seed": seed})
            own = (other, section, agent_, env, of_seeds.get(seed))
            each.append(with_seed(seed) if with_seed else _evaluator(*own))
    return EachLane(each)


def _evaluator(
    config: DictConfig, section: str, agent: Agent[Any], env: HostEnv, data: Dataset | None
) -> Any:
    options = {key: value for key, value in OmegaConf.select(config, section).items() if key != "every"}
    root = section.rpartition(".")[2]
    given = {"seed": config.seed} | ({"data": data} if _takes_data(config, section) else {})
    try:
        return build(OmegaConf.create({root: options | {"_partial_": True}}), root, agent, env, **given)
    except UserError as error:
        message = str(error)
        named = message.startswith((f"{root}:", f"{root}."))  # `build` knows the section as `root`
        raise UserError(section + message.removeprefix(root) if named else message) from error
