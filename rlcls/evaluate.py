"""Plays what a run has learnt: `python -m rlcls.evaluate run=runs/... eval.episodes=100 video=true`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcls._errors import UserError, command, nearest

if TYPE_CHECKING:
    from rlcls.training.checkpoint import Checkpoint
    from rlcls.training.evaluation import Evaluation

_OPTIONS = ("run", "eval.episodes", "checkpoint", "video")
_HELP = """Plays whole episodes with what a run has learnt, under the evaluation protocol.

usage: python -m rlcls.evaluate run=RUN_FOLDER [name=value ...]

run=FOLDER        the run folder
eval.episodes=N   episodes to play; the run's own number if nothing is said
checkpoint=STEP   the agent step whose checkpoint plays; the newest if nothing is said, or with latest
video=FILE.mp4    film the first episode; true: into the run folder's videos/

The result is printed and kept in the run folder's evaluations/."""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(_HELP)
        return 0
    options = _parse(argv)
    run_dir = Path(options["run"])
    video = options.get("video", "false")
    if video not in ("true", "false") and not video.endswith(".mp4"):
        raise UserError(f"video={video} must be true, false or a file that ends in .mp4")
    episodes = _positive(options["eval.episodes"]) if "eval.episodes" in options else None

    from rlcls.envs.atari import Atari
    from rlcls.training import build, film, player, xla
    from rlcls.training.evaluation import episode_seeds, evaluate
    from rlcls.training.progress import Progress, header
    from rlcls.training.run_folder import read_config

    config = read_config(run_dir)
    config.eval.episodes = episodes or config.eval.episodes
    checkpoint = _checkpoint(run_dir, options.get("checkpoint", "latest"))
    xla.choose_device(None)
    xla.cache_compilations()
    config.env.num_envs = 1  # this one only tells what is observed and done
    with contextlib.closing(build.environment(config)) as env:
        arena, epsilon = build.evaluation_environment(config, env)
        agent, network = build.agent(config, env)
    protocol = getattr(arena, "protocol", None)
    if video != "false" and not isinstance(arena, Atari):
        raise UserError(f"video={video}: only Atari games can be filmed, not {config.game}")
    rows = {
        "game": str(config.game),
        "protocol": protocol.describe() if protocol else "",
        "epsilon": f"{epsilon:g}",
        "network": network,
        "run folder": str(run_dir),
        "checkpoint": f"agent step {checkpoint.agent_steps:,}",
    }
    header({name: value for name, value in rows.items() if value})

    number = checkpoint.counters["trainer"]["steps"]
    plays = player.Player(config, agent, epsilon)
    policy = plays.policy(player.acting(config, agent, checkpoint), number)
    first_actions: list[int] = []  # of the first environment, to be filmed

    def act(observations: Any, step: int) -> Any:
        actions = policy(observations, step)
        first_actions.append(int(actions[0]))
        return actions

    seed = plays.seed(number)
    with contextlib.closing(arena), Progress(config.eval.episodes, unit="episodes") as progress:
        result = evaluate(act, arena, episodes=config.eval.episodes, seed=seed, report=progress.update)
    print(_table(result, getattr(arena, "frame_skip", None)))
    print(_store(run_dir, config, checkpoint, protocol, epsilon, result))
    if video != "false":
        default = run_dir / "videos" / f"{checkpoint.agent_steps}.mp4"
        actions = first_actions[: result.lengths[0]]
        seeds = episode_seeds(seed, arena.num_envs)
        path = default if video == "true" else Path(video)
        assert isinstance(arena, Atari)
        filmed = film.film(path, arena.game, arena.protocol, seed=seeds[:1], actions=actions)
        # The sticky actions of the film are the evaluation's, or it is another episode.
        assert filmed == result.returns[0], (filmed, result.returns[0])
        print(path)
    return 0


def _parse(argv: list[str]) -> dict[str, str]:
    options = {}
    for argument in argv:
        name, _, value = argument.partition("=")
        if name not in _OPTIONS:
            raise UserError(f"unknown option {name!r}{nearest(name, _OPTIONS)}")
        if not value:
            raise UserError(f"{name} needs a value: {name}=...")
        options[name] = value
    if "run" not in options:
        raise UserError("name the run folder to evaluate: run=runs/...; --help says more")
    return options


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise UserError(f"eval.episodes={text} must be a whole number of at least 1")
    return int(text)


def _checkpoint(run_dir: Path, wanted: str) -> Checkpoint:
    from rlcls.training import checkpoint

    if wanted == "latest":
        newest, passed_over = checkpoint.load(run_dir)
        for line in passed_over:
            print(f"note: {line}", file=sys.stderr)
        if newest is None:
            raise UserError(f"{run_dir} has no checkpoint yet")
        return newest
    folders = {str(int(folder.name)): folder for folder in checkpoint.folders(run_dir)}
    if wanted not in folders:
        there = ", ".join(["latest", *folders])
        raise UserError(f"{run_dir} has no checkpoint {wanted} ({there})")
    try:
        return checkpoint.open_whole(run_dir, folders[wanted])
    except checkpoint.DAMAGED as error:
        raise UserError(f"checkpoint {folders[wanted]} is damaged ({error})") from error


def _table(result: Evaluation, frame_skip: int | None) -> str:
    """The returns in one line below their names."""
    returns, length = result.returns, result.lengths.mean()
    cells = {
        "episodes": f"{len(returns)}",
        "mean return": f"{returns.mean():,.2f}",
        "std": f"{returns.std():,.2f}",
        "min": f"{returns.min():,g}",
        "max": f"{returns.max():,g}",
        "mean length": f"{length:,.0f} agent steps",
    }
    if frame_skip:
        minutes, seconds = divmod(round(length * frame_skip / 60), 60)
        cells["played in"] = f"{minutes}:{seconds:02} min"
    width = {name: max(len(name), len(cell)) for name, cell in cells.items()}
    return "\n".join(
        "  ".join(text.rjust(width[name]) for name, text in row)
        for row in (((n, n) for n in cells), cells.items())
    )


def _store(
    run_dir: Path, config: Any, checkpoint: Checkpoint, protocol: Any, epsilon: float, result: Evaluation
) -> Path:
    """Writes the result into the run folder, with all that it depends on."""
    from rlcls.training.run_folder import facts

    path = run_dir / "evaluations" / f"{checkpoint.agent_steps}.json"
    content = {
        "agent_steps": checkpoint.agent_steps,
        "game": str(config.game),
        "protocol": dataclasses.asdict(protocol) if protocol else None,
        "epsilon": epsilon,
        "episodes": len(result.returns),
        **result.summary(),
        "lengths": result.lengths.tolist(),
        "made_with": facts(),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
