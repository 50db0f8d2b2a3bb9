"""The seeds and settings that one run trains together, from its configuration."""

from __future__ import annotations

import itertools
from typing import Any

from omegaconf import DictConfig, OmegaConf


def settings(config: DictConfig) -> list[DictConfig]:
    """One configuration for each setting, that is for each combination of options that are lists."""
    if "settings" not in config:
        return [config]
    made = []
    for changes in config.settings:
        setting = config.copy()
        del setting["settings"]
        for option, value in changes.items():
            OmegaConf.update(setting, option, value)
        made.append(setting)
    return made


def seeds(config: DictConfig) -> list[int]:
    """The seeds that a run trains together."""
    return list(range(config.seed, config.seed + config.get("seeds", 1)))


def lanes(config: DictConfig) -> list[DictConfig]:
    """One configuration for each lane, in the order of the metrics. A run that is not compiled has one lane."""
    if not is_compiled(config):
        return [config]
    made = []
    for setting, seed in itertools.product(settings(config), seeds(config)):
        own: dict[str, Any] = {"seed": seed, "seeds": 1}
        if "seed" in setting.get("data", {}):
            own["data"] = {"seed": setting.data.seed + seed - config.seed}
        made.append(OmegaConf.merge(setting, own))
    return made  # type: ignore[return-value]


def is_compiled(config: DictConfig) -> bool:
    """Whether a run trains lanes in one compiled program."""
    return "seeds" in config
