"""Trains an agent: `python -m rlcls.train agent=dqn loss=hlgauss game=Pong`."""

from __future__ import annotations

import contextlib
import datetime
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcls._errors import UserError, command

if TYPE_CHECKING:
    import jax
    from omegaconf import DictConfig

    from rlcls.agents.base import Agent
    from rlcls.envs.base import HostEnv
    from rlcls.training.loop import Loop


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 128 + n when signal n stopped the run."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    from rlcls.cli import compose, config_file, sweep

    launcher, argv = sweep.split_launcher(argv)
    file, argv = config_file.split(argv)
    flags, overrides = compose.split_flags(argv)
    if launcher and "--multirun" not in flags:
        raise UserError(f"{launcher[0]} makes the runs of a sweep; add --multirun")
    if "--help" in flags:
        print(compose.help_text())
        return 0
    arguments = config_file.overrides(file, overrides) if file else overrides
    with config_file.named(file, arguments, overrides):
        commands = compose.expand(arguments) if "--multirun" in flags else [arguments]
        # A sweep composes each command where it runs it.
        print_only, sweeping = "--config" in flags, "--multirun" in flags
        configs = [compose.compose(each) for each in commands] if print_only or not sweeping else []
    if print_only:
        from omegaconf import OmegaConf

        print("---\n".join(OmegaConf.to_yaml(each) for each in configs), end="")
        return 0
    if sweeping:
        return sweep.launch(commands, launcher) if launcher else sweep.run_each(commands)
    return _train(configs[0])


def _train(config: DictConfig) -> int:
    from rlcls.cli import build, clipping, packages, resources
    from rlcls.runs import Checkpoints, Metrics, Progress, RunFolder, run, start
    from rlcls.runs.metrics import WandB, check_wandb
    from rlcls.runs.progress import phase
    from rlcls.runs.run import last_shown
    from rlcls.runs.signals import collected
    from rlcls.training import Diverged, memory, xla

    resources.allow_open_files()
    packages.import_all(tensorboard=config.logging.tensorboard)
    device = xla.choose_device(config.device)
    xla.cache_compilations()
    memory.reuse_freed_memory()
    if config.logging.wandb:
        check_wandb(config.logging.wandb)
    with contextlib.ExitStack() as stack:
        # Every part is built, and so refused, before a file is written; only W&B can still fail later.
        env = build.environment(config)
        stack.callback(env.close)
        data = build.dataset(config)
        agent = build.agent(config, data.spec if data else env.spec)
        loop = stack.enter_context(contextlib.closing(build.loop(config, agent, env, data)))
        evaluators = build.evaluators(config, agent, env)
        for each in evaluators:
            stack.callback(getattr(each.evaluator, "close", lambda: None))
        path, options = build.run_dir(config, env.name), build.plain_dict(config)
        folder = RunFolder(path, options, environment=env.name, protocol=env.facts())
        stack.enter_context(folder)
        received = stack.enter_context(collected())
        unit = loop.unit.replace("_", " ")
        if steps := _finished_at(folder.path, config.steps):
            print(
                f"{folder.path} is finished: it has {steps:,} of {config.steps:,} {unit}; "
                "give a larger steps= to continue"
            )
            return 0
        checkpoints = Checkpoints(folder.path, config.checkpoint.keep)
        with phase("reading the checkpoint"):
            checkpoint, replay, position, remarks = start(folder, checkpoints, config.resume)
        for line in [*(folder.remarks if checkpoint else []), *remarks]:
            print(f"note: {line}", file=sys.stderr)
        unfinished = checkpoint.counters["unfinished"] if checkpoint else []
        wandb = None
        if config.logging.wandb:
            run_id = position["wandb"] if position else None
            wandb = WandB(folder.path, config.logging.wandb, unit=loop.unit, run_id=run_id, config=options)
            stack.callback(wandb.close)
        folder.record()
        with phase("compiling"):
            seconds = loop.warm_up(config.steps)  # of one unit
        if checkpoint:
            print(f"resuming {folder.path} at {unit[:-1]} {checkpoint.steps:,}", flush=True)
            fresh = loop.save()
            with phase("reading the checkpoint"):
                saved = checkpoint.saved(fresh.tree, fresh.rows if replay else None)
            with phase("replaying actions") as tick:
                loop.restore(saved, tick)
        _header(config, loop, env, agent, device, folder.path, seconds)
        metrics = Metrics(
            folder.path,
            unit=loop.unit,
            tensorboard=config.logging.tensorboard,
            wandb=wandb,
            position=position,
        )
        stack.enter_context(contextlib.closing(metrics))
        if not replay:
            metrics.write("refill", loop.counts)
        first = loop.counts[loop.unit]
        # Programs compile once more for the arrays of a checkpoint, so the first steps after a resume are slow.
        resumed_from = first + config.logging.every if checkpoint else 0
        progress = Progress(
            config.steps,
            start=first,
            steady_from=max(resumed_from, 0 if data else config.replay.get("min_size", 0)),
            expected_pace=seconds,
            unit=unit,
            frame_skip=env.frame_skip if data is None else None,
        )
        try:
            with progress:
                run(
                    loop,
                    steps=config.steps,
                    evaluators=evaluators,
                    metrics=metrics,
                    checkpoints=checkpoints,
                    checkpoint_every=config.checkpoint.every,
                    keep_every=config.checkpoint.keep_every,
                    keep_best=config.checkpoint.keep_best,
                    stopped=lambda: bool(received),
                    unfinished=unfinished,
                    best=checkpoint.counters.get("best") if checkpoint else None,
                    progress=progress,
                    shown=last_shown(folder.path) if checkpoint else None,
                    widen=lambda: clipping.advice(config, getattr(loop, "replay", None)),
                )
        except Diverged as error:
            raise UserError(f"{error}; {_last_checkpoint(folder.path)}") from error
        print(f"{_outcome(loop, config.steps, received)}{_picture(folder.path)}")
        return 128 + received[0] if received else 0


def _header(
    config: DictConfig,
    loop: Loop,
    env: HostEnv,
    agent: Agent[Any],
    device: jax.Device,
    path: Path,
    seconds: float,
) -> None:
    from rlcls.cli.build import describe_network
    from rlcls.runs.folder import facts
    from rlcls.runs.progress import UNMEASURED, header

    cores = facts()["cores"]
    unit = loop.unit.replace("_", " ")
    left = config.steps - loop.counts[loop.unit]
    end = datetime.datetime.now() + datetime.timedelta(seconds=left * seconds * (1 + UNMEASURED))
    rows = {
        "game": env.name,
        "protocol": env.describe(),
        "recipe": f"{config.choices.recipe}, {config.steps:,} {unit}",
        "agent": config.choices.agent,
        "head": _head_line(config),
        "network": describe_network(config, agent),
        "device": f"{device.platform} ({device.device_kind}, {cores} core{'s' * (cores != 1)})",
        "run folder": str(path),
        "expected end": f"{end:%Y-%m-%d %H:%M} ({seconds * 1e3:.2f} ms an {unit[:-1]}, "
        f"and {UNMEASURED:.0%} for evaluations and checkpoints)",
    }
    header({name: value for name, value in rows.items() if value})


def _head_line(config: DictConfig) -> str:
    """The loss and its options in one line."""
    options = {name: value for name, value in config.loss.items() if name not in ("_target_", "name")}
    return " ".join([config.choices.loss, *(f"{name}={value}" for name, value in options.items())])


def _finished_at(path: Path, steps: int) -> int | None:
    """The units of the newest checkpoint if the run in this folder ended with it, at `steps` or later."""
    from rlcls.runs.checkpoint import load

    newest, _ = load(path, replay=False)
    ended = newest is not None and newest.steps >= steps and not newest.counters["unfinished"]
    return newest.steps if newest and ended else None


def _last_checkpoint(path: Path) -> str:
    from rlcls.runs.checkpoint import folders

    existing = folders(path)
    return f"{existing[-1]} is the last good checkpoint" if existing else "there was no checkpoint yet"


def _picture(path: Path) -> str:
    """Draws the learning curve; the end of a sentence that says where, or why there is none."""
    from rlcls.plotting.curves import learning_curve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return f"; learning curve: {learning_curve(path)}"
        except UserError as error:
            return f"; no learning curve: {error}"


def _outcome(loop: Loop, steps: int, received: list[int]) -> str:
    count, unit = loop.counts[loop.unit], loop.unit.replace("_", " ")
    if received:
        name = signal.Signals(received[0]).name
        return f"stopped by {name} at {unit[:-1]} {count:,} and saved; the same command continues from there"
    return f"finished {count:,} of {steps:,} {unit}"


if __name__ == "__main__":
    # Until there is something to save, Ctrl-C ends the process at once: some library's import may swallow an exception.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
