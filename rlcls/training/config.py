"""The configuration of a run: composed by Hydra from `rlcls.configs`, checked, and compared with another's.

Hydra's own `main` answers a typing error with ten lines of its internals and leaves an `outputs/` folder;
here a mistake is one line, a `UserError`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlcls._errors import UserError, nearest

from . import config_checks, config_help
from .config_checks import leaves, plain
from .config_help import FLAGS, GROUPS, choices

_OBJECTS = ("agent", "loss", "backbone", "env")  # sections that build an object: it may take more options
_REPLACEABLE = ("loss", "backbone")
_FIXED = ("loss.name", "env.game")  # follow from loss=, game=
# Where a run is kept, how far it goes and what it tells: a run continues when these change.
_OUTSIDE_IDENTITY = ("choices", "steps", "run_dir", "device", "logging", "diagnostics", "checkpoint")


def compose(argv: list[str]) -> DictConfig:
    """The whole configuration that `argv` asks for, every value checked and every interpolation resolved.

    Later wins: config.yaml, agent, loss, backbone, env, recipe, recipe/<recipe>/<agent>_<loss>,
    recipe/<recipe>/<backbone>, `argv`. The key `choices` names what was chosen of each group; a loss or backbone of
    one's own (`loss._target_=package.Class`) goes by the name of its class.

    Args:
      argv: overrides in Hydra's syntax, such as `["loss=mse", "agent.learning_rate=1e-4"]`.

    Raises:
      UserError: one line about the first mistake in `argv`.
    """
    overrides = [_parse(argument) for argument in argv]
    for override in overrides:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line!r} asks for several runs; add --multirun to make them")
    chosen = [override for override in overrides if override.key_or_group in GROUPS]
    for override in chosen:
        _check_choice(override)
    known = _compose([_text(override) for override in chosen])
    for override in overrides:
        if override not in chosen:
            _check_option(override, known)

    config = _compose([_text(override) for override in overrides])
    OmegaConf.set_struct(config, False)
    names = {group: config.choices[group] for group in GROUPS}
    for section in _REPLACEABLE:
        if config[section].get("_target_") != known[section]["_target_"]:
            said = {override.key_or_group for override in overrides}
            _drop_options_of_another(config, section, said)
            names[section] = str(config[section]["_target_"]).rpartition(".")[2]
    config.choices = names
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from None
    usual: Any = OmegaConf.to_container(known)
    config_checks.check(resolved, usual)
    return DictConfig(resolved)


def split_flags(argv: list[str]) -> tuple[set[str], list[str]]:
    """The flags among `argv`, by their long names, and the rest.

    Raises:
      UserError: an unknown flag.
    """
    flags, rest = set(), []
    for argument in argv:
        flag = {"-h": "--help", "-m": "--multirun"}.get(argument, argument)
        if flag in FLAGS:
            flags.add(flag)
        elif flag.startswith("-") and "=" in flag:
            raise UserError(f"options are written without dashes: {flag.lstrip('-')}")
        elif flag.startswith("-"):
            raise UserError(f"unknown flag {flag!r}" + nearest(flag, FLAGS))
        else:
            rest.append(argument)
    return flags, rest


def help_text() -> str:
    """What `--help` prints: usage, examples, the groups and their choices, the options and their defaults."""
    defaults: Any = OmegaConf.to_container(compose([]))
    return config_help.render(dict(leaves(defaults)))


def identity(config: DictConfig) -> str:
    """Eight hexadecimal digits that two configurations share where one can continue the other's run."""
    text = json.dumps({key: _number(value) for key, value in leaves(_identified(config))}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def difference(there: DictConfig, here: DictConfig) -> list[str]:
    """What keeps `here` from continuing the run of `there`, a line for each option.

    >>> difference(compose(["seed=1"]), compose([]))
    ['seed is 1 there and 0 here']
    """
    old, new = (dict(leaves(_identified(config))) for config in (there, here))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key not in old:
            lines.append(f"{key} is absent there and {plain(new[key])} here")
        elif key not in new:
            lines.append(f"{key} is {plain(old[key])} there and absent here")
        elif _number(old[key]) != _number(new[key]):
            lines.append(f"{key} is {plain(old[key])} there and {plain(new[key])} here")
    return lines


def expand(argv: list[str]) -> list[list[str]]:
    """The command lines of a sweep, in the order of the last option running fastest; each is checked.

    >>> expand(["loss=mse,hlgauss", "seed=range(2)"])
    [['loss=mse', 'seed=0'], ['loss=mse', 'seed=1'], ['loss=hlgauss', 'seed=0'], ['loss=hlgauss', 'seed=1']]
    """
    commands: list[list[str]] = [[]]
    for argument in argv:
        override = _parse(argument)
        values = [_text(override)]
        if override.is_sweep_override():
            try:
                name = f"{override.get_key_element()}"
                values = [f"{name}={value}" for value in override.sweep_string_iterator()]
            except (HydraException, AttributeError, TypeError, ValueError):
                raise UserError(
                    f"cannot read the sweep {argument!r}; write name=1,2,3 or name=range(3)"
                ) from None
        commands = [[*command, value] for command in commands for value in values]
    for command in commands:
        compose(command)
    return commands


def build(config: DictConfig, section: str, **arguments: Any) -> Any:
    """The object that `section` of a configuration describes.

    Raises:
      UserError: its class cannot be imported, or does not take these options.
    """
    try:
        return hydra.utils.instantiate(config[section], _convert_="all", **arguments)
    except HydraException as error:
        cause = error.__cause__
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if cause is None or isinstance(cause, (HydraException, ImportError, TypeError, ValueError)):
            raise UserError(f"{section}: {_one_line(cause or error)}") from error
        raise


def _compose(overrides: list[str]) -> DictConfig:
    try:
        with hydra.initialize_config_module("rlcls.configs", version_base="1.3"):
            config = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from None
    OmegaConf.set_struct(config, False)
    chosen = config.hydra.runtime.choices
    del config["hydra"]
    config.choices = {group: chosen.get(group) for group in GROUPS}
    return config


def _parse(argument: str) -> Override:
    if argument.startswith("-"):
        raise UserError(f"unknown flag {argument!r}" + nearest(argument, FLAGS))
    key, equals, value = argument.partition("=")
    if not (equals or argument.startswith("~")) or not key:
        raise UserError(f"cannot read {argument!r}; options are written name=value, such as seed=1")
    parser = OverridesParser.create()
    try:
        return parser.parse_override(argument)
    except HydraException:
        pass
    try:
        # A path or a name with a character that Hydra's grammar keeps for itself.
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return parser.parse_override(f"{key}='{quoted}'")
    except HydraException:
        raise UserError(f"cannot read {argument!r}; options are written name=value, such as seed=1") from None


def _text(override: Override) -> str:
    """The override as Hydra's parser took it."""
    return override.input_line or ""


def _check_choice(override: Override) -> None:
    group, choice = override.key_or_group, override.value()
    if override.is_delete() or override.is_add() or override.package is not None:
        raise UserError(
            f"{override.input_line!r}: a group is chosen with {group}=name ({', '.join(choices(group))})"
        )
    if choice not in choices(group):
        text = override.get_value_string()  # null, where the choice is None
        raise UserError(f"unknown {group} '{text}'" + nearest(text, choices(group)))


def _check_option(override: Override, known: DictConfig) -> None:
    key = override.key_or_group
    tree: Any = OmegaConf.to_container(known)
    names = [name for name, _ in leaves(tree) if not name.startswith("choices.")]
    section, dot, _ = key.partition(".")
    if override.is_add() or override.is_force_add():
        if key not in names and not (section in _OBJECTS and dot):
            raise UserError(f"nothing would read {key!r}; options can be added to {', '.join(_OBJECTS)}")
        return
    if key in names:
        return
    if any(name.startswith(f"{key}.") for name in names):
        inside = [name for name in names if name.startswith(f"{key}.")]
        raise UserError(f"{key!r} is a group of options, set one by one ({', '.join(inside)})")
    owner = f" of {section}={known.choices[section]}" if section in _OBJECTS else ""
    raise UserError(f"unknown option {key!r}{owner}" + _nearest_option(key, names))


def _nearest_option(key: str, names: list[str]) -> str:
    """The nearest option to `key`, which may lack its section, and the options beside it."""
    section, _, leaf = key.rpartition(".")
    names = [name for name in names if "._" not in name and name not in _FIXED]
    beside = [name for name in names if name.rpartition(".")[0] == section]
    same_leaf = [name for name in names if name.rpartition(".")[2] == leaf]
    if section in _OBJECTS:
        return nearest(key, beside)
    hint = f"; did you mean {same_leaf[0]!r}?" if same_leaf else nearest(key, names).partition(" (")[0]
    return hint + (f" ({', '.join(beside)})" if section and beside else " (--help lists them all)")


def _drop_options_of_another(config: DictConfig, section: str, said: set[str]) -> None:
    """Removes options that belong to the class which the command line replaced by another."""
    for key in list(config[section]):
        if not str(key).startswith("_") and f"{section}.{key}" not in said:
            del config[section][key]


def _identified(config: DictConfig) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in container.items() if key not in _OUTSIDE_IDENTITY}


def _number(value: Any) -> Any:
    """The same value for 10 and 10.0, which mean the same to whoever writes a configuration."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_number(item) for item in value] if isinstance(value, list) else value


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
