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
    from rlcls.cli import compose, sweep

    launcher, argv = sweep.split_launcher(argv)
    flags, overrides = compose.split_flags(argv)
    if launcher and "--multirun" not in flags:
        raise UserError(f"{launcher[0]} makes the runs of a sweep; add --multirun")
    if "--help" in flags:
        print(compose.help_text())
        return 0
    commands = compose.expand(overrides) if "--multirun" in flags else [overrides]
    if "--config" in flags:
        from omegaconf import OmegaConf

        print("---\n".join(OmegaConf.to_yaml(compose.compose(each)) for each in commands), end="")
        return 0
    if "--multirun" in flags:
        return sweep.launch(commands, launcher) if launcher else sweep.run_each(commands)
    return _train(compose.compose(overrides))


def _train(config: DictConfig) -> int:
    from rlcls.cli import build, packages, resources
    from rlcls.runs import Checkpoints, Metrics, Progress, RunFolder, run
    from rlcls.runs.metrics import check_wandb
    from rlcls.runs.run import OVERHEAD
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
        for remark in folder.remarks:
            print(f"note: {remark}", file=sys.stderr)
        checkpoints = Checkpoints(folder.path, config.checkpoint.keep)
        checkpoint, remarks = checkpoints.resume()
        for line in remarks:
            print(f"note: {line}", file=sys.stderr)
        if remarks and not checkpoint:
            print(f"note: no checkpoint of {folder.path} is whole: the run begins again", file=sys.stderr)
        unit = loop.unit.replace("_", " ")
        unfinished = checkpoint.counters["unfinished"] if checkpoint else []
        if checkpoint and checkpoint.steps >= config.steps and not unfinished:
            print(
                f"{folder.path} is finished: it has {checkpoint.steps:,} of {config.steps:,} {unit}; "
                "give a larger steps= to continue"
            )
            return 0
        seconds = OVERHEAD * loop.warm_up(config.steps)  # of one unit
        if checkpoint:
            print(f"resuming {folder.path} at {unit[:-1]} {checkpoint.steps:,}", flush=True)
            fresh = loop.save()
            loop.restore(checkpoint.saved(fresh.tree, fresh.rows))
        _header(config, loop, env, agent, device, folder.path, seconds)
        metrics = Metrics(
            folder.path,
            unit=loop.unit,
            tensorboard=config.logging.tensorboard,
            wandb=config.logging.wandb,
            position=checkpoint.counters["metrics"] if checkpoint else None,
        )
        stack.enter_context(contextlib.closing(metrics))
        progress = Progress(
            config.steps,
            start=loop.counts[loop.unit],
            steady_from=0 if data else config.replay.get("min_size", 0),
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
                    stopped=lambda: bool(received),
                    unfinished=unfinished,
                    progress=progress,
                )
        except Diverged as error:
            raise UserError(f"{error}; {_last_checkpoint(folder.path)}") from error
        picture = _picture(folder.path)
        print(f"{_outcome(loop, config.steps, received)}; learning curve: {picture}")
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
    from rlcls.runs.progress import header

    cores = facts()["cores"]
    unit = loop.unit.replace("_", " ")
    left = config.steps - loop.counts[loop.unit]
    end = datetime.datetime.now() + datetime.timedelta(seconds=left * seconds)
    rows = {
        "game": env.name,
        "protocol": env.describe(),
        "recipe": f"{config.choices.recipe}, {config.steps:,} {unit}",
        "agent": config.choices.agent,
        "head": _head_line(config),
        "network": describe_network(config, agent),
        "device": f"{device.platform} ({device.device_kind}, {cores} core{'s' * (cores != 1)})",
        "run folder": str(path),
        "expected end": f"{end:%Y-%m-%d %H:%M} ({seconds * 1e3:.2f} ms an {unit[:-1]})",
    }
    header({name: value for name, value in rows.items() if value})


def _head_line(config: DictConfig) -> str:
    """The loss and its options in one line."""
    options = {name: value for name, value in config.loss.items() if name not in ("_target_", "name")}
    return " ".join([config.choices.loss, *(f"{name}={value}" for name, value in options.items())])


def _last_checkpoint(path: Path) -> str:
    from rlcls.runs.checkpoint import folders

    existing = folders(path)
    return f"{existing[-1]} is the last good checkpoint" if existing else "there was no checkpoint yet"


def _picture(path: Path) -> Path:
    from rlcls.plotting.curves import learning_curve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learning_curve(path)


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
