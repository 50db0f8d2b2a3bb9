"""Composes the configuration of a run from `rlcls.configs` with Hydra, and checks it.

Options that a class of the user's own does not take are dropped. Hydra's own `main` prints ten lines of its internals
for a mistake, and leaves an `outputs/` folder. Here a mistake is one line, a `UserError`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.resources
import inspect
import itertools
import math
import pkgutil
import re
from typing import Any

import hydra
import hydra.errors
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlcls._errors import UserError, nearest, one_line
from rlcls.runs.identity import leaves

from . import checks, help
from .help import FLAGS, GROUPS, choices

# Sections that describe an object by `_target_`. Options may be added to them, and `_target_` may be the user's class.
OBJECTS = (
    "agent",
    "agent.optimizer",
    "agent.schedule",
    "loss",
    "backbone",
    "env",
    "data",
    "training",
    "replay",
    "exploration",
    "eval",
)
FIXED = ("loss.name", "env.game")  # loss= and game= set them
# Options that are text, whatever is typed. Hydra would read 2026_11_26 as a number and true as a truth value.
_AS_TYPED = ("game", "run_dir", "env.id", "env.task", "logging.wandb")
_SHORT = {"task": "env.task"}
# Sections that all settings of a run share.
_SHARED = ("eval", "evals", "checkpoint", "logging", "diagnostics", "mesh", "distributed")
_MOST_RUNS = 1000  # the largest sweep; all its runs are composed and checked before the first begins
# Options that are read although the object of their section does not take them.
_ALSO_READ = {"eval": {"every"}, "env": {"number", "num_envs"}}


def compose(argv: list[str], *, trains: bool = True) -> DictConfig:
    """The whole configuration that `argv` asks for, every value checked and every interpolation resolved.

    Later entries win: config.yaml, loop, data, agent, loss, backbone, eval, recipe, env, then the files
    <loop>, <agent>_<loss>, <backbone> and <agent/schedule> of recipe/<recipe>/, then `argv`. The key `choices` holds
    the chosen name of each group, or the name of the user's own class (`loss._target_=package.Class`). Options that the
    class of a section does not take are dropped.

    Args:
      argv: overrides in Hydra's syntax, such as `["loss=mse", "agent.learning_rate=1e-4"]`.
      trains: whether the configuration must also satisfy the rules that only training has.

    Raises:
      UserError: one line about the first mistake in `argv`, which may be an option that its class does not take.
    """
    overrides = [_parse(argument) for argument in argv]
    for override in overrides:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line!r} asks for several runs; add --multirun to make them")
    chosen = [override for override in overrides if override.key_or_group in GROUPS]
    for override in chosen:
        _check_choice(override)
    known = _compose([_text(override) for override in chosen])
    learns_from_data = "seeds" in known and (
        known.data._target_ is not None or any(each.key_or_group == "data._target_" for each in overrides)
    )
    if learns_from_data:
        _leave_playing_out(known)
    for override in overrides:
        if override not in chosen and override.key_or_group != "settings":
            _check_option(override, known)

    if changes := _settings(overrides, known):
        others = [argument for argument in argv if not _makes_settings(_parse(argument), known)]
        return _with_settings(others, changes, trains)

    config = _compose([_text(override) for override in overrides])
    if learns_from_data:
        _leave_playing_out(config)
    given = {override.key_or_group for override in overrides}
    for section in OBJECTS:
        _fit(config, known, section, given)
    if not _takes_game(config):
        own_class = not str(config.env.get("_target_")).startswith("rlcls.")
        if "game" in given and not own_class:
            own_name = f"; env.id={config.env.id} names the environment" if "id" in config.env else ""
            raise UserError(f"game: env={config.choices.env} does not take it{own_name}")
        if "game" not in given:
            del config["game"], known["game"]
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        option = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{option}{one_line(error)}") from None
    checks.check(resolved, _resolved_where_possible(known), trains=trains)
    return DictConfig(resolved)


def _settings(overrides: list[Override], known: DictConfig) -> list[dict[str, Any]]:
    """The options that each setting changes: all combinations of the options that are lists, or the list `settings=`.

    Args:
      overrides: the user's own values.
      known: the configuration without them.
    """
    lists: dict[str, Any] = {}
    changes: Any = None
    for override in overrides:
        option = override.key_or_group
        if option == "settings":
            changes = override.value()
        elif _makes_settings(override, known):
            lists[option] = override.value()
        else:  # the last value wins if an option is given twice
            lists.pop(option, None)
    if changes is None:
        for option, numbers in lists.items():
            if not numbers or not all(map(_is_number, numbers)) or len(set(numbers)) < len(numbers):
                raise UserError(f"{option}: expected different numbers in the list, not {numbers}")
        if (count := math.prod(map(len, lists.values()))) > _MOST_RUNS:
            raise UserError(f"these lists make {count} settings; a run has at most {_MOST_RUNS}")
        combinations = itertools.product(*lists.values())
        changes = [dict(zip(lists, values, strict=True)) for values in combinations] if lists else []
    elif lists or not changes or not isinstance(changes, list) or not all(map(_are_numbers, changes)):
        raise UserError(
            "settings: expected options and their numbers, [{agent.learning_rate:1e-4},...], and no other list"
        )
    for option in dict.fromkeys(option for each in changes for option in each):
        numbers = list(dict.fromkeys(each[option] for each in changes if option in each))
        if "seeds" not in known:
            raise UserError(
                f"{option}: a list of values needs loop=compiled; --multirun {option}={','.join(map(str, numbers))} "
                "makes runs one after another"
            )
        if option.partition(".")[0] in _SHARED:
            raise UserError(f"{option}: expected one number, not {numbers}; all that train together share it")
    return changes


def _makes_settings(override: Override, known: DictConfig) -> bool:
    """Whether an override asks for several settings."""
    option = override.key_or_group
    is_list = "." in option and isinstance(override.value(), list)
    return option == "settings" or (is_list and _is_number(OmegaConf.select(known, option)))


def _with_settings(argv: list[str], changes: list[dict[str, Any]], trains: bool) -> DictConfig:
    """The first setting's configuration, with a list `settings` of the options in which each differs.

    Args:
      argv: the options that all settings share, as in `compose`.
      changes: the options that each setting changes.
      trains: as in `compose`.
    """
    configs = []
    for each in changes:
        values = [f"{option}={value!r}" for option, value in each.items()]
        configs.append(compose([*argv, *values], trains=trains))
    options = [dict(leaves(OmegaConf.to_container(config))) for config in configs]  # type: ignore[arg-type]
    names = [name for name in options[0] if any(each.get(name) != options[0][name] for each in options)]
    configs[0].settings = [{name: each[name] for name in names} for each in options]
    return configs[0]


def _are_numbers(changes: Any) -> bool:
    return isinstance(changes, dict) and bool(changes) and all(map(_is_number, changes.values()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def split_flags(argv: list[str]) -> tuple[set[str], list[str]]:
    """The flags in `argv`, by their long names, and the other arguments.

    Raises:
      UserError: a flag is unknown.
    """
    flags, rest = set(), []
    for argument in argv:
        flag = {"-h": "--help", "-m": "--multirun"}.get(argument, argument)
        if flag in FLAGS:
            flags.add(flag)
        elif flag.startswith("-") and "=" in flag:
            raise UserError(f"options are written without dashes: {flag.lstrip('-')}")
        elif flag.startswith("-"):
            raise _unknown_flag(flag)
        else:
            rest.append(argument)
    return flags, rest


def help_text() -> str:
    """The text of `--help`: usage, examples, the groups and their choices, the options and their defaults."""
    defaults: Any = OmegaConf.to_container(compose([]))
    return help.render(dict(leaves(defaults)))


def expand(argv: list[str]) -> list[list[str]]:
    """The command lines of a sweep; the last option varies fastest, and each command is checked.

    Raises:
      UserError: a command has a mistake, there are more than a thousand runs, or two runs have the same folder.

    >>> expand(["loss=mse,hlgauss", "seed=range(2)"])
    [['loss=mse', 'seed=0'], ['loss=mse', 'seed=1'], ['loss=hlgauss', 'seed=0'], ['loss=hlgauss', 'seed=1']]
    """
    commands: list[list[str]] = [[]]
    for argument in argv:
        override = _parse(argument)
        values = [argument]
        if override.is_sweep_override():
            try:
                name = f"{override.get_key_element()}"
                texts = itertools.islice(override.sweep_string_iterator(), _MOST_RUNS + 1)
                values = [f"{name}={value}" for value in texts]
            except (HydraException, AttributeError, TypeError, ValueError):
                raise UserError(
                    f"cannot read the sweep {argument!r}; write name=1,2,3 or name=range(3)"
                ) from None
        if len(commands) * len(values) > _MOST_RUNS:
            raise UserError(
                f"{argument!r} makes more than {_MOST_RUNS} runs; a sweep has at most {_MOST_RUNS}"
            )
        commands = [[*command, value] for command in commands for value in values]
    folders = [folder for command in commands if (folder := compose(command).run_dir) is not None]
    if shared := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(
            f"run_dir={shared[0]} would hold several runs of the sweep; leave run_dir out, and each run has a "
            "folder of its own"
        )
    return commands


def configs() -> contextlib.AbstractContextManager[Any]:
    """A context in which Hydra composes from `rlcls.configs`."""
    # Hydra 1.3 warns if version_base is missing, and 1.4 if it is given.
    version = {} if hasattr(hydra.errors, "Hydra15MigrationWarning") else {"version_base": "1.3"}
    return hydra.initialize_config_module("rlcls.configs", **version)


def _compose(overrides: list[str]) -> DictConfig:
    return copy.deepcopy(_composed(tuple(overrides)))


# Hydra takes a quarter of a second, and a sweep composes the same groups again and again.
@functools.lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    try:
        with configs():
            config = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from None
    OmegaConf.set_struct(config, False)
    chosen = config.hydra.runtime.choices
    del config["hydra"]
    config.choices = {group: chosen.get(group) for group in GROUPS}
    return config


def _leave_playing_out(config: DictConfig) -> None:
    """Turns the configuration of a compiled loop that plays into that of one that learns from `data`."""
    for section in ("replay", "exploration"):
        config.pop(section, None)
    if config.training._target_ == "rlcls.training.Program":
        config.training._target_ = "rlcls.training.OfflineProgram"


def _resolved_where_possible(config: DictConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries. An interpolation that needs a missing value is left as written."""
    tree: dict[str, Any] = {}
    for key, value in config.items_ex(resolve=False):
        if isinstance(value, DictConfig):
            tree[str(key)] = _resolved_where_possible(value)
        else:
            try:
                tree[str(key)] = "???" if OmegaConf.is_missing(config, key) else config[key]
            except OmegaConfBaseException:
                tree[str(key)] = value
    return {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in tree.items()}


def _parse(argument: str) -> Override:
    """An argument as an override of Hydra's. A path or a name needs no quotes.

    Raises:
      UserError: it is not written name=value.
    """
    if argument.startswith("-"):
        raise _unknown_flag(argument)
    key, equals, value = argument.partition("=")
    key = _SHORT.get(key, key)
    if not (equals or argument.startswith("~")) or not key:
        raise UserError(f"cannot read {argument!r}; options are written name=value, such as seed=1")
    parser = OverridesParser.create()
    if key.lstrip("+") in _AS_TYPED:
        value = _as_typed(value)
    try:
        return parser.parse_override(f"{key}{equals}{value}")
    except HydraException:
        pass
    try:
        # It may be a path or a name with a character that Hydra's grammar reserves.
        return parser.parse_override(f"{key}={_quoted(value)}")
    except HydraException:
        raise UserError(f"cannot read {argument!r}; options are written name=value, such as seed=1") from None


def _unknown_flag(flag: str) -> UserError:
    hint = nearest(flag, FLAGS)
    if "did you mean" not in hint:
        hint = f"; options are written without dashes, as in {flag.lstrip('-') or 'seed'}=value{hint}"
    return UserError(f"unknown flag {flag!r}{hint}")


def _as_typed(value: str) -> str:
    """Quotes the value, or each of several (a,b). null, quotes, sweeps and interpolations keep their meaning."""
    if re.match(r"['\"]|(choice|range|glob|shuffle|sort|tag)\(", value) or "${" in value:
        return value
    return ",".join(each if each == "null" else _quoted(each) for each in value.split(","))


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()


def _text(override: Override) -> str:
    """The text that Hydra's parser read."""
    return override.input_line or ""


def _check_choice(override: Override) -> None:
    """Raises a UserError if a choice from a group does not exist, or is not written group=name."""
    group, choice = override.key_or_group, override.value()
    if override.is_delete() or override.is_add() or override.package is not None:
        raise UserError(
            f"{override.input_line!r}: a group is chosen with {group}=name ({', '.join(choices(group))})"
        )
    if choice not in choices(group):
        text = override.get_value_string()  # "null" if the choice is None
        raise UserError(f"unknown {group} '{text}'" + nearest(text, choices(group)))


def _check_option(override: Override, known: DictConfig) -> None:
    """Raises a UserError if an option does not exist, or if + is missing or superfluous."""
    key = override.key_or_group
    tree: Any = OmegaConf.to_container(known)
    names = [name for name, _ in leaves(tree) if not name.startswith("choices.")]
    section, dot, _ = key.partition(".")
    _check_loop_has(section, key, known)
    if key in names:
        if override.is_add():
            raise UserError(f"{key} exists; write it without +")
        return
    inside = [name for name in names if name.startswith(f"{key}.") and "._" not in name]
    if inside and not override.is_force_add():
        raise UserError(f"{key!r} is a group of options, set one by one ({', '.join(inside)})")
    if override.is_add() or override.is_force_add():
        if not (section in (*OBJECTS, "evals") and dot):
            objects = ", ".join(name for name in OBJECTS if "." not in name)
            raise UserError(f"nothing would read {key!r}; options can be added to {objects}")
        return
    owner = f" of {section}={known.choices[section]}" if known.choices.get(section) else ""
    if section in GROUPS and (takers := _choices_with(section, key.split(".")[1])):
        raise UserError(f"unknown option {key!r}{owner}; it belongs to {', '.join(takers)}")
    raise UserError(f"unknown option {key!r}{owner}" + _nearest_option(key, names))


def _check_loop_has(section: str, key: str, known: DictConfig) -> None:
    """Raises a UserError if the chosen loop does not have the section of an option, such as replay."""
    loops = _choices_with("loop", section)
    loop = f"loop={known.choices.loop}"
    if not loops or (loop in loops and section in known):  # a recipe may set options of another loop
        return
    option = key.rpartition(".")[2]
    in_data = not option.startswith("_") and _choices_with("data", option)
    if loop in loops:
        twin = f"; there it is data.{option}" if in_data else ""
        raise UserError(f"{key}: {loop} with data= plays nothing and has no {section}{twin}")
    twin = f"; with {loop} it is data.{option}" if in_data else ""
    raise UserError(f"{key} belongs to {', '.join(loops)}" + (twin or f", not to {loop}"))


@functools.cache
def _choices_with(group: str, option: str) -> list[str]:
    """The choices of a group whose files set the option, written group=name."""
    folder = importlib.resources.files("rlcls.configs").joinpath(group)
    files = {name: OmegaConf.create(folder.joinpath(f"{name}.yaml").read_text()) for name in choices(group)}
    return [f"{group}={name}" for name, options in files.items() if option in options]


def _nearest_option(key: str, names: list[str]) -> str:
    """The nearest option to `key`, which may lack its section, and the options beside it."""
    section, dot, leaf = key.rpartition(".")
    names = [name for name in names if "._" not in name and name not in FIXED] + [*GROUPS] * (not dot)
    beside = [name for name in names if name.rpartition(".")[0] == section]
    if section in OBJECTS:
        names = beside = sorted(beside)
    same_leaf = [name for name in names if leaf in (last := name.rpartition(".")[2], _initials(last))]
    hint = f"; did you mean {same_leaf[0]!r}?" if same_leaf else nearest(key, names).partition(" (")[0]
    if section in OBJECTS:
        return hint + (f" ({', '.join(beside)})" if beside else "")
    return hint + (f" ({', '.join(beside)})" if section and beside else " (--help lists them all)")


def _initials(name: str) -> str:
    """The initials of a name's words: lr for learning_rate."""
    return "".join(word[0] for word in name.split("_") if word)


def _fit(config: DictConfig, known: DictConfig, section: str, given: set[str]) -> None:
    """Drops the options that the class of `section` does not take.

    Such options exist because a recipe may set options of a class that the user has replaced. An option that the user
    gave raises a UserError instead. The name of a class of the user's own is recorded in `choices`. A section without a
    class is dropped, unless the user gave one of its options.
    """
    options = OmegaConf.select(config, section)
    parent, _, name = section.rpartition(".")
    if not isinstance(options, DictConfig):
        return
    target = OmegaConf.to_container(options).get("_target_")  # type: ignore[union-attr]
    if target is None:
        if not any(key.startswith(f"{section}.") for key in given):
            del (OmegaConf.select(config, parent) if parent else config)[name]
        return
    usual = OmegaConf.select(known, f"{section}._target_")
    if target != usual and (group := section.replace(".", "/")) in GROUPS:
        config.choices[group] = str(target).rpartition(".")[2]
    takes = options_of(str(target))
    importable = takes is not None
    if takes is None:  # a class of the user's own gets only the options that the user gave
        if target == usual:
            return
        takes = frozenset()
    for key in [str(key) for key in options]:
        if key.startswith("_") or key in takes | _ALSO_READ.get(section, set()):
            continue
        if not any(other == f"{section}.{key}" or other.startswith(f"{section}.{key}.") for other in given):
            del options[key]
        elif importable:
            named = takes.intersection(map(str, options)) or takes
            raise UserError(f"{section}.{key}: {target} takes no {key!r}" + nearest(key, named))


def _takes_game(config: DictConfig) -> bool:
    """Whether an option of the environment or of the data refers to the option `game`."""
    raw: Any = OmegaConf.to_container(config)
    return any(isinstance(value, str) and "${game}" in value for _, value in leaves(raw))


def options_of(target: str) -> frozenset[str] | None:
    """The keyword arguments of the class or function at an import path; None if they are unknown.

    A class that takes **options is assumed to pass them to the class that it inherits from.
    """
    try:
        made: Any = pkgutil.resolve_name(target)
        functions = [made]
        if isinstance(made, type):  # the metaclass of NNX modules hides the signature of the class
            inits = [vars(each)["__init__"] for each in made.__mro__[:-1] if "__init__" in vars(each)]
            functions = inits or functions
        signatures = [inspect.signature(function).parameters.values() for function in functions]
    except Exception:  # importing may raise any exception, which `build` reports with the section
        return None
    names: set[str] = set()
    for parameters in signatures:
        named = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
        names |= {each.name for each in named if each.name != "self" and not each.name.startswith("_")}
        if len(named) == len(parameters):
            return frozenset(names)
    return None
