"""Trains an agent: `python -m rlcls.train agent=dqn loss=hlgauss game=Pong`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from rlcls._errors import UserError, command


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 128 + n when signal n stopped the run."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    from rlcls.training import config as configuration

    flags, overrides = configuration.split_flags(argv)
    if "--help" in flags:
        print(configuration.help_text())
        return 0
    commands = configuration.expand(overrides) if "--multirun" in flags else [overrides]
    if "--config" in flags:
        from omegaconf import OmegaConf

        print("---\n".join(OmegaConf.to_yaml(configuration.compose(said)) for said in commands), end="")
        return 0
    if "--multirun" in flags:
        return _train_each(commands)
    return _train(configuration.compose(overrides))


def _train_each(commands: list[list[str]]) -> int:
    """Makes the runs of a sweep in processes of their own, until one of them fails or a signal comes."""
    for number, said in enumerate(commands, 1):
        print(f"[{number}/{len(commands)}] python -m rlcls.train {shlex.join(said)}", flush=True)
        process = subprocess.Popen([sys.executable, "-m", "rlcls.train", *said])
        # Ctrl-C reaches the run from the terminal too; what is sent to this process alone has to be handed on.
        with _signals({signal.SIGTERM: process.terminate}) as received:
            code = process.wait()
        if code or received:
            return 128 - code if code < 0 else code or 128 + received[0]
    return 0


def _train(config: Any) -> int:
    from rlcls.training import build, memory, xla
    from rlcls.training.checkpoint import Checkpoints
    from rlcls.training.learner import Diverged
    from rlcls.training.metrics import Metrics, check_wandb
    from rlcls.training.player import Player
    from rlcls.training.run import OWED, run
    from rlcls.training.run_folder import RunFolder
    from rlcls.training.trainer import Trainer, make_replay

    device = xla.choose_device(config.device)
    xla.cache_compilations()
    memory.keep()
    build.check_memory(config)
    env = build.environment(config)
    agent, network = build.agent(config, env)
    # What cannot be is said before anything is written; this replay holds no memory yet.
    make_replay(config, env)
    if config.logging.wandb:
        check_wandb(config.logging.wandb)
    protocol = getattr(env, "protocol", None)
    with (
        RunFolder(config, dataclasses.asdict(protocol) if protocol else None) as folder,
        _signals() as received,
    ):
        for remark in folder.remarks:
            print(f"note: {remark}", file=sys.stderr)
        checkpoints = Checkpoints(folder.path, config.checkpoint.keep)
        checkpoint, passed_over = checkpoints.resume()
        for line in passed_over:
            print(f"note: {line}", file=sys.stderr)
        if passed_over and not checkpoint:
            print(f"note: no checkpoint of {folder.path} is whole: the run begins anew", file=sys.stderr)
        owed = checkpoint is not None and checkpoint.counters[OWED]
        if checkpoint and checkpoint.agent_steps >= config.steps and not owed:
            print(
                f"{folder.path} is finished: it has {checkpoint.agent_steps:,} of {config.steps:,} agent steps; "
                "a larger steps= goes on"
            )
            return 0
        with contextlib.ExitStack() as stack:
            trainer = stack.enter_context(contextlib.closing(Trainer(config, agent, env)))
            if checkpoint:
                print(f"resuming {folder.path} at agent step {checkpoint.agent_steps:,}", flush=True)
                trainer.set_state(checkpoint)
            seconds = trainer.warm_up()
            _header(config, trainer, env, network, device, folder.path, seconds)
            position = checkpoint.counters["metrics"] if checkpoint else None
            metrics = Metrics(
                folder.path,
                tensorboard=config.logging.tensorboard,
                wandb=config.logging.wandb,
                position=position,
            )
            stack.enter_context(contextlib.closing(metrics))
            arena, epsilon = build.evaluation_environment(config, env)
            stack.enter_context(contextlib.closing(arena))
            try:
                run(
                    config,
                    trainer,
                    player=Player(config, agent, epsilon),
                    arena=arena,
                    metrics=metrics,
                    checkpoints=checkpoints,
                    stopped=lambda: bool(received),
                    owed=owed,
                    seconds_per_update=seconds,
                )
            except Diverged as error:
                raise UserError(f"{error}; {_kept(folder.path)}") from error
        picture = _picture(folder.path)
        print(f"{_outcome(trainer, config, received)}; learning curve: {picture}")
    return 128 + received[0] if received else 0


@contextlib.contextmanager
def _signals(reactions: Mapping[int, Callable[[], object]] = MappingProxyType({})) -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C, so that the loop stops between two steps; a second one takes its usual course.

    Args:
      reactions: what else to do when the signal comes, by its number.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        # As an exception, so that the display gives the cursor back.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before[number])
        if number in reactions:
            reactions[number]()

    before: dict[int, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _header(
    config: Any, trainer: Any, env: Any, network: str, device: Any, path: Any, seconds: float
) -> None:
    from rlcls.training.progress import header
    from rlcls.training.run import EVALUATIONS
    from rlcls.training.run_folder import facts

    cores = facts()["cores"]
    protocol = getattr(env, "protocol", None)
    updates = (config.steps - trainer.agent_steps) / config.training.update_period
    end = datetime.datetime.now() + datetime.timedelta(seconds=updates * seconds * EVALUATIONS)
    rows = {
        "game": str(config.game),
        "protocol": protocol.describe() if protocol else None,
        "recipe": f"{config.choices.recipe}, {config.steps:,} agent steps",
        "agent": config.choices.agent,
        "head": _head_line(config),
        "network": network,
        "device": f"{device.platform} ({device.device_kind}, {cores} core{'s' * (cores != 1)})",
        "run folder": str(path),
        "expected end": f"{end:%Y-%m-%d %H:%M} ({seconds * 1e3:.1f} ms an update)",
    }
    header({name: value for name, value in rows.items() if value})


def _head_line(config: Any) -> str:
    """The loss and its options in one line."""
    options = {name: value for name, value in config.loss.items() if name not in ("_target_", "name")}
    return " ".join([config.choices.loss, *(f"{name}={value}" for name, value in options.items())])


def _kept(path: Any) -> str:
    from rlcls.training.checkpoint import folders

    there = folders(path)
    return f"{there[-1]} is the last good checkpoint" if there else "there was no checkpoint yet"


def _picture(path: Any) -> Any:
    from rlcls.training.curves import learning_curve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learning_curve(path)


def _outcome(trainer: Any, config: Any, received: list[int]) -> str:
    if received:
        name = signal.Signals(received[0]).name
        return f"stopped by {name} at agent step {trainer.agent_steps:,} and saved; the same command goes on from there"
    return f"finished {trainer.agent_steps:,} of {config.steps:,} agent steps"


if __name__ == "__main__":
    # Until there is something to save, Ctrl-C ends the process at once: some library's import may swallow an exception.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
