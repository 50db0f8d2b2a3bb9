"""The evaluators of a configuration, and whether a run's data and its environments have the same task."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from omegaconf import DictConfig, OmegaConf

from rlcls._errors import UserError
from rlcls.agents.base import Agent
from rlcls.datasets.atari_games import NUM_ACTIONS
from rlcls.envs.base import HostEnv
from rlcls.evaluation import EachLane, EpisodeEvaluator, Periodic
from rlcls.runs.lanes import seeds, settings
from rlcls.spec import Spec
from rlcls.training import Compiled, OfflineProgram
from rlcls.training.loop import Dataset, Loop

from .build import build, dataset, environment


def make(
    config: DictConfig,
    loop: Loop,
    agent: Agent[Any],
    envs: Mapping[str, HostEnv],
    data: Dataset | None = None,
) -> list[Periodic]:
    """The evaluators of a configuration: `eval`, and those of `evals` under their own names.

    Args:
      config: the run's configuration.
      loop: the run's loop. A compiled one has the agent and the data of each lane.
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
            evaluator = _of_each_lane(config, section, loop, agent, env, data)
            made.append(Periodic(f"{kind}.{name}" if name else kind, evaluator, int(every)))
    return made


class RecordedReturns(NamedTuple):
    """The part of a dataset that `EpisodeEvaluator` reads. A checkpoint stores it, so an evaluation opens no data.

    Attributes:
      behaviour_returns: mean returns of the recorded episodes, by game.
    """

    behaviour_returns: Mapping[str, float]


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
        data=RecordedReturns(behaviour_returns),
    )


def _of_each_lane(
    config: DictConfig, section: str, loop: Loop, agent: Agent[Any], env: HostEnv, data: Dataset | None
) -> Any:
    """The evaluator of a section. In a compiled run it evaluates each lane."""
    if not isinstance(loop, Compiled):
        return _evaluator(config, section, agent, env, data)
    each = []
    for number, (setting, program) in enumerate(zip(settings(config), loop.settings, strict=True)):
        if number:
            env = environment(setting)
        data_of_seeds = program.data if isinstance(program, OfflineProgram) else {}
        first = _evaluator(setting, section, program.agent, env, data_of_seeds.get(config.seed))
        with_seed = getattr(first, "with_seed", None)
        for seed in seeds(config):
            own: Any = OmegaConf.merge(setting, {"seed": seed})
            own_data = data_of_seeds.get(seed)
            each.append(
                with_seed(seed) if with_seed else _evaluator(own, section, program.agent, env, own_data)
            )
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


def check_task(config: DictConfig, envs: Mapping[str, HostEnv], data: Dataset | None) -> None:
    """Compares the spec of the data with those of the environments in which evaluators play.

    Raises:
      UserError: the observations or the actions differ, or the data is of other games of Atari.
    """
    if data is None or not _plays(config):
        return
    recorded = sorted(NUM_ACTIONS.keys() & getattr(data, "identity", {}).keys())
    for env in envs.values():
        if other := other_task(data.spec, env):
            raise UserError(f"the data has {other}: {_remedy(data, envs)}")
        if env.name in NUM_ACTIONS and recorded and env.name not in recorded:
            raise UserError(
                f"the data is of {' and '.join(recorded)}, and evaluations play {env.name}: choose "
                f"game={recorded[0]}, or eval.every=0"
            )


def trained_spec(config: DictConfig, env: HostEnv) -> Spec:
    """The observations and actions that the agent of a run was built for.

    A run with data whose evaluators play has started only if data and environment have equal specs, so the
    environment's spec is enough. Otherwise the data set is opened again.

    Raises:
      UserError: the data set is needed and cannot be opened.
    """
    data = None if _plays(config) else dataset(config)
    return data.spec if data else env.spec


def other_task(learnt: Spec, env: HostEnv) -> str:
    """How the spec that an agent learnt differs from that of `env`, in one phrase; empty if they are equal."""
    there, here = _describe(learnt), _describe(env.spec)
    return f"{there}, and {env.name} has {here}" if there != here else ""


def _remedy(data: Dataset, envs: Mapping[str, HostEnv]) -> str:
    """The end of an error message: how data and environments can have equal specs."""
    if len(envs) > 1:
        return (
            "several games need the same observations and actions, for Atari +env.full_action_space=true when they "
            "are recorded, too"
        )
    if isinstance(data.spec.observation, dict) and "game" in data.spec.observation:
        return "+env.number=K makes it the K-th of several games"
    return "choose env= as the data, or eval.every=0"


def _describe(spec: Spec) -> str:
    """The observations and actions in one phrase."""
    named = jax.tree_util.tree_leaves_with_path(spec.observation)
    arrays = (f"{jax.tree_util.keystr(path)} {leaf.dtype} {list(leaf.shape)}".strip() for path, leaf in named)
    actions = f"{spec.action.dtype} {list(spec.action.shape)}"
    if spec.num_actions is not None:
        actions = f"{spec.num_actions} for each of {actions}" if spec.action.shape else str(spec.num_actions)
    return f"observations {', '.join(arrays)} and actions {actions}"


def _evaluator_sections(config: DictConfig) -> dict[str, str]:
    """The section of each evaluator, by the kind of its lines of metrics."""
    return {"eval": "eval"} | {name: f"evals.{name}" for name in config.evals}


def _every(config: DictConfig, section: str) -> int:
    """The period of an evaluator; 0 means never."""
    return OmegaConf.select(config, section).every


def _plays(config: DictConfig) -> bool:
    """Whether any evaluator plays in the environment."""
    return any(
        _every(config, section) and _plays_in(config, section)
        for section in _evaluator_sections(config).values()
    )


def _plays_in(config: DictConfig, section: str) -> bool:
    """Whether the evaluator of a section plays in the environment."""
    return getattr(_class_of(config, section), "plays", True)


def _takes_data(config: DictConfig, section: str) -> bool:
    """Whether the constructor of an evaluator has an argument `data`."""
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
