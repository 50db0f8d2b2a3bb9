"""Plays episodes with trained agents: `python -m rlcls.evaluate run=runs/... eval.episodes=100 video=true`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcls._errors import UserError, command, nearest
from rlcls.cli.arguments import DEVICES, parse, probability, whole_number

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from rlcls.evaluation import EpisodeEvaluator, Evaluation
    from rlcls.runs.checkpoint import Checkpoint

_OPTIONS = (
    "run",
    "checkpoint",
    "lane",
    "seed",
    "eval.episodes",
    "eval.epsilon",
    "env.protocol",
    "device",
    "video",
    "film",
)
_FILMS = ("first", "best", "worst")
_HELP = """Plays whole episodes with the agents of one or more runs, under the evaluation protocol.

usage: python -m rlcls.evaluate run=RUN_FOLDER[,RUN_FOLDER ...] [name=value ...]
       python -m rlcls.evaluate RUN_FOLDER [RUN_FOLDER ...] [name=value ...]

run=FOLDER        the run folder, or several with commas between them
checkpoint=STEP   the checkpoint to load: latest (the default), best, or its agent steps (offline: updates)
lane=K            of a run that trained several seeds or settings, the K-th alone, from 0; default: each of them
seed=N            seed of the environments and of the random actions; default: the run's
eval.episodes=N   number of episodes; default: the run's own number
eval.epsilon=P    probability of a random action; default: the run's
env.protocol=NAME the rules of an Atari game; default: the run's
device=NAME       cpu, gpu or tpu; default: the fastest that JAX finds
video=FILE.mp4    films an episode; video=true puts the film into the run folder's videos/
film=NAME         the episode that is filmed: first (the default), best or worst, by their returns

A run that has learnt several games, or trained several seeds, is evaluated on each. The result is printed, for Atari
also in units of human and of DQN scores, several runs or games in one table at the end, and stored in each run folder's
evaluations/, in a file named by the checkpoint and by the options that are not the run's own."""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = parse(argv, _OPTIONS, names=True)
    if arguments.help:
        print(_HELP)
        return 0
    options = arguments.options
    run_dirs = [*_run_dirs(options.get("run", "")), *map(Path, arguments.names)]
    if not run_dirs:
        raise UserError("name the run folder to evaluate: run=runs/...; --help says more")
    video = options.get("video", "false")
    if video not in ("true", "false") and not video.endswith(".mp4"):
        raise UserError(f"video={video} must be true, false or a file that ends in .mp4")
    if video.endswith(".mp4") and len(run_dirs) > 1:
        raise UserError(
            f"video={video} is one film, and there are {len(run_dirs)} runs; video=true films each"
        )
    filmed = options.get("film", "first")
    if filmed not in _FILMS:
        raise UserError(f"unknown film {filmed!r}{nearest(filmed, _FILMS)}")
    if "film" in options and video == "false":
        raise UserError(f"film={filmed} says what is filmed; add video=true")
    settings, wanted = _settings(options), options.get("checkpoint", "latest")

    from rlcls.cli import run_config
    from rlcls.runs import read_config
    from rlcls.runs.lanes import lanes

    wanted_runs = []
    for run_dir in run_dirs:
        config = read_config(run_dir)
        every = range(len(lanes(config)))
        one = whole_number(options, "lane", 0, every[-1])
        chosen = every if one is None else [one]
        wanted_runs += [(run_dir, game, lane) for game in run_config.games(config) for lane in chosen]
    if video.endswith(".mp4") and len(wanted_runs) > 1:
        raise UserError(f"video={video} is one film, and there are several runs; video=true films each")
    rows: list[dict[str, str]] = []
    try:
        for run_dir, game, lane in wanted_runs:
            cells = _evaluate(run_dir, game, lane, settings, wanted, video, filmed)
            rows.append({"run": str(run_dir), **({"game": game} if game else {}), **cells})
    finally:
        if len(wanted_runs) > 1 and rows:
            print(_table(rows))
    return 0


def _run_dirs(text: str) -> list[Path]:
    """The folders that `run=` names, with commas between them unless the whole text is one folder."""
    names = [text] if Path(text).exists() else text.split(",")
    return [Path(name) for name in names if name]


def _evaluate(
    run_dir: Path,
    game: str,
    lane: int,
    settings: Mapping[str, Any],
    wanted: str,
    video: str,
    filmed: str,
) -> dict[str, str]:
    """Evaluates one run on one game and stores the result; returns the cells of its row in a table.

    Args:
      run_dir: the run folder.
      game: one of several games that the run has learnt; empty for a run of one game.
      lane: one of several seeds and settings that the run has trained; 0 for a run of one.
      settings: values of options that replace the run's own, from `_settings`.
      wanted: the checkpoint.
      video: the option of that name.
      filmed: the option `film`.
    """
    from rlcls import trained
    from rlcls.cli import build, evaluators, resources, run_config
    from rlcls.evaluation.film import can_be_filmed, film
    from rlcls.files import replacing
    from rlcls.phases import phase
    from rlcls.runs import Progress, read_config
    from rlcls.runs.lanes import lanes
    from rlcls.runs.progress import header
    from rlcls.training import xla

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files that training removes meanwhile
    resources.allow_open_files()
    whole = read_config(run_dir)
    config = run_config.games(trained.lane_config(whole, lane))[game]
    several = {"lane": lane} if len(lanes(whole)) > 1 else {}
    changed = ({"game": game} if game else {}) | several | _change(config, settings)
    xla.choose_device(settings.get("device"))
    xla.cache_compilations()
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(contextlib.closing(build.one_environment(config)))
        with phase("reading the checkpoint"):
            (agent, acting, spec), chosen, remarks = trained.read(config, env, run_dir, wanted, lane)
        for line in remarks:
            print(f"note: {line}", file=sys.stderr)
        if other := evaluators.other_task(spec, env):
            raise UserError(f"{run_dir} cannot be evaluated in its environment: the data has {other}")
        behaviour_returns = chosen.counters["loop"].get("behaviour_returns", {})
        evaluator = evaluators.episode_evaluator(config, agent, env, behaviour_returns)
        stack.callback(evaluator.close)
        if video != "false" and not can_be_filmed(evaluator.env):
            raise UserError(f"video={video}: {env.name} cannot be filmed")
        stem = "_".join([str(chosen.steps), *(f"{name}={value}" for name, value in changed.items())])
        stem = stem.replace("/", "-")
        result_path = run_dir / "evaluations" / f"{stem}.json"
        film_stem = stem if filmed == "first" else f"{stem}_film={filmed}"
        film_path = run_dir / "videos" / f"{film_stem}.mp4" if video == "true" else Path(video)
        for path in [result_path, *[film_path] * (video != "false")]:
            _prepare(path.parent)
        unit = "agent step" if "agent_steps" in chosen.counters["counts"] else "update"
        rows = {
            "game": env.name,
            "protocol": evaluator.env.describe(),
            "epsilon": f"{evaluator.epsilon:g}",
            "network": build.describe_network(config, agent),
            "run folder": str(run_dir),
            "lane": f"{lane}, seed {config.seed}" if several else "",
            "checkpoint": f"{unit} {chosen.steps:,}",
        }
        header({name: value for name, value in rows.items() if value})

        number = chosen.counters["number"]
        actions: list[np.ndarray] = []  # of every step, to be filmed
        with Progress(evaluator.episodes, unit="episodes") as progress:
            result = evaluator.play(
                acting,
                number,
                lambda done, total: progress.update(done),
                record=None if video == "false" else lambda step: actions.append(step.copy()),
            )
        normalised = evaluator.normalised(result.summary()["return_mean"])
        cells = _cells(result, normalised, evaluator.env.frame_skip)
        print(_table([cells]))
        print(_store(result_path, env.name, config.seed, evaluator, chosen, result))
        if video != "false":
            best, worst = int(result.returns.argmax()), int(result.returns.argmin())
            episode = {"first": 0, "best": best, "worst": worst}[filmed]
            row, skip = result.place(episode, evaluator.env.num_envs)
            with replacing(film_path) as partial:
                shown = film(
                    partial,
                    evaluator.env,
                    seed=evaluator.seeds(number)[row : row + 1],
                    actions=[step[row] for step in actions[: skip + int(result.lengths[episode])]],
                    skip=skip,
                )
                if shown != result.returns[episode]:
                    raise UserError(
                        f"the film's return is {shown:g} and the evaluation's was {result.returns[episode]:g}: "
                        f"{env.name} does not repeat its episodes, so no film was kept"
                    )
            print(film_path)
    return ({"lane": str(lane)} if several else {}) | cells


def _prepare(folder: Path) -> None:
    """Makes a folder of results, so that one that cannot be written is refused before episodes are played."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


def _settings(options: Mapping[str, str]) -> dict[str, Any]:
    """The values of those options that replace the run's own."""
    settings: dict[str, Any] = {}
    for name, least, most in (("seed", 0, 2**32 - 1), ("eval.episodes", 1, 10**9)):
        if (number := whole_number(options, name, least, most)) is not None:
            settings[name] = number
    if (epsilon := probability(options, "eval.epsilon")) is not None:
        settings["eval.epsilon"] = epsilon
    if "env.protocol" in options:
        settings["env.protocol"] = options["env.protocol"]
    if "device" in options:
        if options["device"] not in DEVICES:
            raise UserError(f"unknown device {options['device']!r}{nearest(options['device'], DEVICES)}")
        settings["device"] = options["device"]
    return settings


def _change(config: DictConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Puts settings into a run's configuration; returns those that change it, by the last word of their names."""
    from omegaconf import OmegaConf

    if "env.protocol" in settings and "protocol" not in config.env:
        raise UserError(
            f"env.protocol={settings['env.protocol']}: only Atari games have protocols, and this is none"
        )
    changed = {}
    for name, value in settings.items():
        if OmegaConf.select(config, name) != value:
            OmegaConf.update(config, name, value, force_add=True)
            changed[name.rpartition(".")[2]] = value
    return changed


def _cells(result: Evaluation, normalised: Mapping[str, float], frame_skip: int) -> dict[str, str]:
    """A row of the table, by the names of its columns."""
    returns, length = result.returns, result.lengths.mean()
    cells = {
        "episodes": f"{len(returns)}",
        "mean return": f"{returns.mean():,.2f}",
        "std": f"{returns.std():,.2f}",
        "min": f"{returns.min():,g}",
        "max": f"{returns.max():,g}",
        "mean length": f"{length:,.0f} agent steps",
    }
    cells |= {name.replace("_", " "): f"{value:.2f}" for name, value in normalised.items()}
    if frame_skip > 1:
        minutes, seconds = divmod(round(length * frame_skip / 60), 60)
        cells["game time"] = f"{minutes}:{seconds:02} min"
    return cells


def _table(rows: list[dict[str, str]]) -> str:
    """Rows below the names of their columns; a row may lack some."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name, "") for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _store(
    path: Path,
    name: str,
    seed: int,
    evaluator: EpisodeEvaluator,
    checkpoint: Checkpoint,
    result: Evaluation,
) -> Path:
    """Writes the result, with everything that it depends on."""
    from rlcls.files import write_text
    from rlcls.runs.folder import facts

    content = {
        **checkpoint.counters["counts"],
        "game": name,
        "protocol": evaluator.env.facts(),
        "seed": seed,
        "epsilon": evaluator.epsilon,
        "episodes": len(result.returns),
        **result.summary(),
        **evaluator.normalised(result.summary()["return_mean"]),
        "lengths": result.lengths.tolist(),
        "made_with": facts(),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
