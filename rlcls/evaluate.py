"""Plays episodes with what a run has learnt: `python -m rlcls.evaluate run=runs/... eval.episodes=100 video=true`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlcls._errors import UserError, command
from rlcls.cli.arguments import parse

if TYPE_CHECKING:
    from rlcls.evaluation import EpisodeEvaluator, Evaluation
    from rlcls.runs.checkpoint import Checkpoint

_OPTIONS = ("run", "eval.episodes", "checkpoint", "video")
_HELP = """Plays whole episodes with what a run has learnt, under the evaluation protocol.

usage: python -m rlcls.evaluate run=RUN_FOLDER [name=value ...]

run=FOLDER        the run folder
eval.episodes=N   episodes to play; default: the run's own number
checkpoint=STEP   the checkpoint that plays, by its agent steps (or updates, offline); default: latest
video=FILE.mp4    film the first episode; true: into the run folder's videos/

The result is printed and kept in the run folder's evaluations/."""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = parse(argv, _OPTIONS)
    if arguments.help:
        print(_HELP)
        return 0
    options = arguments.options
    if "run" not in options:
        raise UserError("name the run folder to evaluate: run=runs/...; --help says more")
    run_dir = Path(options["run"])
    video = options.get("video", "false")
    if video not in ("true", "false") and not video.endswith(".mp4"):
        raise UserError(f"video={video} must be true, false or a file that ends in .mp4")
    episodes = _positive(options["eval.episodes"]) if "eval.episodes" in options else None

    from rlcls.cli import build, resources
    from rlcls.evaluation.film import can_be_filmed, film
    from rlcls.runs import Progress, read_config
    from rlcls.runs.files import replacing
    from rlcls.runs.progress import header
    from rlcls.training import xla

    resources.allow_open_files()
    config = read_config(run_dir)
    if episodes:
        config.eval.episodes = episodes
    checkpoint = _checkpoint(run_dir, options.get("checkpoint", "latest"))
    xla.choose_device(None)
    xla.cache_compilations()
    if "num_envs" in config.env:
        config.env.num_envs = 1  # this environment only states its observations and actions
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(contextlib.closing(build.environment(config)))
        agent = build.agent(config, env.spec)
        evaluator = build.episode_evaluator(config, agent, env)
        stack.callback(evaluator.close)
        if video != "false" and not can_be_filmed(evaluator.env):
            raise UserError(f"video={video}: {env.name} cannot be filmed")
        unit = "agent step" if "agent_steps" in checkpoint.counters["counts"] else "update"
        rows = {
            "game": env.name,
            "protocol": evaluator.env.describe(),
            "epsilon": f"{evaluator.epsilon:g}",
            "network": build.describe_network(config, agent),
            "run folder": str(run_dir),
            "checkpoint": f"{unit} {checkpoint.steps:,}",
        }
        header({name: value for name, value in rows.items() if value})

        number = checkpoint.counters["number"]
        first_actions: list[int] = []  # of the first environment, to be filmed
        with Progress(evaluator.episodes, unit="episodes") as progress:
            result = evaluator.play(
                checkpoint.tree({"acting": build.acting_like(config, agent)})["acting"],
                number,
                lambda done, total: progress.update(done),
                record=None if video == "false" else lambda actions: first_actions.append(int(actions[0])),
            )
        print(_table(result, evaluator.env.frame_skip))
        print(_store(run_dir, env.name, evaluator, checkpoint, result))
        if video != "false":
            path = run_dir / "videos" / f"{checkpoint.steps}.mp4" if video == "true" else Path(video)
            if video == "true":
                path.parent.mkdir(exist_ok=True)
            actions = first_actions[: result.lengths[0]]
            with replacing(path) as partial:
                filmed = film(partial, evaluator.env, seed=evaluator.seeds(number)[:1], actions=actions)
                if filmed != result.returns[0]:
                    raise UserError(
                        f"the film's return is {filmed:g} and the evaluation's was {result.returns[0]:g}: {env.name} "
                        "does not repeat its episodes, so no film was kept"
                    )
            print(path)
    return 0


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise UserError(f"eval.episodes={text} must be a whole number of at least 1")
    return int(text)


def _checkpoint(run_dir: Path, wanted: str) -> Checkpoint:
    from rlcls.runs import checkpoint
    from rlcls.runs.files import DAMAGED

    if wanted == "latest":
        newest, remarks = checkpoint.load(run_dir)
        for line in remarks:
            print(f"note: {line}", file=sys.stderr)
        if newest is None:
            raise UserError(f"{run_dir} has no checkpoint yet")
        return newest
    folders = {str(int(folder.name)): folder for folder in checkpoint.folders(run_dir)}
    if wanted not in folders:
        existing = ", ".join(["latest", *folders])
        raise UserError(f"{run_dir} has no checkpoint {wanted} ({existing})")
    try:
        return checkpoint.open_whole(run_dir, folders[wanted])
    except DAMAGED as error:
        raise UserError(f"checkpoint {folders[wanted]} is damaged ({error})") from error


def _table(result: Evaluation, frame_skip: int) -> str:
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
    if frame_skip > 1:
        minutes, seconds = divmod(round(length * frame_skip / 60), 60)
        cells["played in"] = f"{minutes}:{seconds:02} min"
    width = {name: max(len(name), len(cell)) for name, cell in cells.items()}
    return "\n".join(
        "  ".join(text.rjust(width[name]) for name, text in row)
        for row in (((n, n) for n in cells), cells.items())
    )


def _store(
    run_dir: Path, name: str, evaluator: EpisodeEvaluator, checkpoint: Checkpoint, result: Evaluation
) -> Path:
    """Writes the result into the run folder, with everything that it depends on."""
    from rlcls.runs.files import write_text
    from rlcls.runs.folder import facts

    path = run_dir / "evaluations" / f"{checkpoint.steps}.json"
    content = {
        "agent_steps": checkpoint.counters["counts"].get("agent_steps"),
        "game": name,
        "protocol": evaluator.env.facts(),
        "epsilon": evaluator.epsilon,
        "episodes": len(result.returns),
        **result.summary(),
        "lengths": result.lengths.tolist(),
        "made_with": facts(),
    }
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
