"""Trains an agent: `python -m rlcls.train agent=dqn loss=hlgauss game=Pong`."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlcls._errors import UserError, command
from rlcls.phases import phase

if TYPE_CHECKING:
    import jax
    from omegaconf import DictConfig

    from rlcls.agents.base import Agent
    from rlcls.distributed import Hosts
    from rlcls.envs.base import HostEnv
    from rlcls.evaluation import Periodic
    from rlcls.runs import Checkpoint, RunFolder, Start
    from rlcls.runs.metrics import WandB
    from rlcls.training import Placement
    from rlcls.training.loop import Loop


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 128 + n when signal n stopped the run."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    # The imports take seconds, so `phase` reports them. --config and --help print nothing but their text, which users
    # often redirect to a file.
    prints_only = {"--config", "--help", "-h"}.intersection(argv)
    with contextlib.nullcontext() if prints_only else phase("starting"):
        from rlcls.cli import compose, config_file, sweep
        from rlcls.runs.output import unread_is_dropped

        launcher, argv = sweep.split_launcher(argv)
        file, argv = config_file.split(argv)
        flags, overrides = compose.split_flags(argv)
        if launcher and "--multirun" not in flags:
            raise UserError(f"{launcher[0]} makes the runs of a sweep; add --multirun")
        print_only, sweeping = "--config" in flags, "--multirun" in flags
        commands, configs = [], []
        if "--help" not in flags:
            arguments = config_file.overrides(file, overrides) if file else overrides
            with config_file.named(file, arguments, overrides):
                commands = compose.expand(arguments) if sweeping else [arguments]
                # A sweep composes each command again when it runs it.
                configs = [compose.compose(each) for each in commands] if print_only or not sweeping else []
    if "--help" in flags:
        print(compose.help_text())
        return 0
    if print_only:
        from omegaconf import OmegaConf

        print("---\n".join(OmegaConf.to_yaml(each) for each in configs), end="")
        return 0
    with unread_is_dropped():
        if sweeping:
            return sweep.launch(commands, launcher) if launcher else sweep.run_each(commands)
        return _train(configs[0])


def _train(config: DictConfig) -> int:
    from rlcls import distributed
    from rlcls.cli import run_config

    options = run_config.plain_dict(config)
    compared = {name: value for name, value in options.items() if name != "distributed"}
    with distributed.joined(config.distributed, compared) as hosts:
        return _train_with(config, hosts)


class _Parts(NamedTuple):
    """The parts of a run in this process, which may be one of several.

    Attributes:
      config: the run's configuration.
      hosts: the processes.
      device: a device of the kind that was chosen.
      placement: the devices that learn.
      env: the environment, of the first game if there are several.
      name: the environment's name, or the number of games.
      agent: the agent that learns.
      loop: the loop that trains the agent.
      evaluators: evaluate the agent.
    """

    config: DictConfig
    hosts: Hosts
    device: jax.Device
    placement: Placement
    env: HostEnv
    name: str
    agent: Agent[Any]
    loop: Loop
    evaluators: list[Periodic]

    @property
    def unit(self) -> str:
        """The unit of the run's `steps` in words: "agent steps" or "updates"."""
        return self.loop.unit.replace("_", " ")


def _train_with(config: DictConfig, hosts: Hosts) -> int:
    """Trains in this process, which may be one of several."""
    with contextlib.ExitStack() as stack:
        with phase("starting"):
            from rlcls.runs import start, together
            from rlcls.runs.signals import Stopped, collected

            parts = _build(config, hosts, stack)
            path, folder = _open_folder(parts, stack)
        loop, unit = parts.loop, parts.unit
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        received = stack.enter_context(collected(dict.fromkeys(numbers, hosts.ask_stop)))
        if steps := hosts.broadcast(_finished_at(path, config.steps) if folder else None):
            print(
                f"{path} is finished: it has {steps:,} of {config.steps:,} {unit}; give a larger steps= to continue"
            )
            return 0
        with phase("reading the checkpoint"):
            begun = together(start(folder, config.resume) if folder else None, path, hosts)
        for line in [*(folder.remarks if folder and begun.checkpoint else []), *begun.remarks]:
            print(f"note: {line}", file=sys.stderr)
        with phase("compiling"):
            seconds = loop.warm_up(config.steps)  # of one unit
        wandb = _open_wandb(parts, path, begun, stack)
        if folder:
            folder.record()
        if begun.checkpoint:
            print(f"resuming {path} at {unit[:-1]} {begun.checkpoint.steps:,}", flush=True)
            if remark := _remark(parts, begun, begun.checkpoint):
                print(f"note: {remark}", file=sys.stderr)
            try:
                _restore(parts, begun, begun.checkpoint, lambda: bool(received) and hosts.count == 1)
            except Stopped:
                print(
                    f"stopped by {_name(received)} before training continued; the same command continues from there"
                )
                return 128 + received[0]
        _header(parts, path, seconds)
        _drive(parts, begun, path, wandb, received, seconds)
        # A signal after the last step stopped nothing. A signal that stopped the run may have come to another process.
        is_early = bool(received) or loop.counts[loop.unit] < config.steps
        ended = hosts.broadcast(
            not is_early or _finished_at(path, config.steps) is not None if folder else None
        )
        stopped = [] if ended else received or [signal.SIGTERM]
        picture = _picture(path) if folder else ""
        print(f"{_outcome(loop, config.steps, stopped)}{picture}", flush=True)
        return 128 + stopped[0] if stopped else 0


def _build(config: DictConfig, hosts: Hosts, stack: contextlib.ExitStack) -> _Parts:
    """Builds and checks every part before a file is written. Only W&B can still fail later. `stack` closes parts."""
    from rlcls.cli import build, evaluators, packages, resources, run_config
    from rlcls.distributed import compare
    from rlcls.runs.metrics import check_wandb
    from rlcls.training import loop as loops
    from rlcls.training import memory, xla

    resources.allow_open_files()
    packages.import_all(tensorboard=config.logging.tensorboard)
    device = xla.choose_device(config.device)
    xla.cache_compilations()
    memory.reuse_freed_memory()
    if config.logging.wandb and hosts.index == 0:
        check_wandb(config.logging.wandb)
    own = run_config.share(config, hosts.index, hosts.count)
    envs: dict[str, HostEnv] = {}
    for name, options_of_game in run_config.games(own).items():
        envs[name] = build.environment(options_of_game)
        stack.callback(envs[name].close)
    env = next(iter(envs.values()))
    data = build.dataset(own)
    evaluators.check_task(config, envs, data)
    agent = build.agent(config, data.spec if data else env.spec)
    placement = build.placement(config)
    loop = stack.enter_context(contextlib.closing(build.loop(own, agent, env, data, placement)))
    loops.check(loop)
    made = evaluators.make(config, loop, agent, envs, data)
    for each in made:
        stack.callback(getattr(each.evaluator, "close", lambda: None))
    if config.checkpoint.keep_best and len(envs) > 1:
        raise UserError(
            f"checkpoint.keep_best=true compares one return, and {len(envs)} games have one each; "
            "checkpoint.keep_every=N keeps every N-th"
        )
    facts: dict[str, Any] = {name or "env": each.facts() for name, each in envs.items()}
    compare(hosts, facts | {"data": getattr(data, "identity", None)})
    played = f"{len(envs)}-games" if len(envs) > 1 else env.name
    return _Parts(config, hosts, device, placement, env, played, agent, loop, made)


def _open_folder(parts: _Parts, stack: contextlib.ExitStack) -> tuple[Path, RunFolder | None]:
    """The path of the run folder, and on the first process the open folder, which `stack` closes."""
    from rlcls.cli import run_config
    from rlcls.runs import RunFolder

    path, folder = run_config.run_dir(parts.config, parts.name), None
    if parts.hosts.index == 0:
        options = run_config.plain_dict(parts.config)
        folder = RunFolder(path, options, environment=parts.name, protocol=parts.env.facts())
        stack.enter_context(folder)
    _check_shared(path, parts.hosts)
    return path, folder


def _open_wandb(parts: _Parts, path: Path, begun: Start, stack: contextlib.ExitStack) -> WandB | None:
    """The open W&B run, which `stack` closes; None on all processes but the first, and without logging.wandb."""
    from rlcls.cli import run_config
    from rlcls.runs.metrics import WandB

    project = parts.config.logging.wandb
    if not project or parts.hosts.index:
        return None
    run_id = begun.metrics["wandb"] if begun.metrics else None
    options = run_config.plain_dict(parts.config)
    wandb = WandB(path, project, unit=parts.loop.unit, run_id=run_id, config=options)
    stack.callback(wandb.close)
    return wandb


def _check_shared(path: Path, hosts: Hosts) -> None:
    """Raises a UserError if the processes do not see the same run folder."""
    from rlcls.runs.folder import LOCK

    if hosts.count == 1:
        return
    token = hosts.broadcast(secrets.token_hex(8) if hosts.index == 0 else None)
    if hosts.index == 0:
        (path / LOCK).write_text(token)
    hosts.gather(None)
    try:
        seen = (path / LOCK).read_text()
    except OSError:
        seen = ""
    blind = [index for index, sees in enumerate(hosts.gather(seen == token)) if not sees]
    if blind:
        raise UserError(
            f"process {blind[0]} does not see the run folder {path} of process 0; run_dir= must be on a disk that all "
            "processes share"
        )


def _remark(parts: _Parts, begun: Start, checkpoint: Checkpoint) -> str:
    """A remark if the number of processes or the mesh is not that of the checkpoint; otherwise empty."""
    if begun.is_dealt:
        is_online = "replay" in checkpoint.counters["loop"]
        kept = "parameters, optimiser and counters are kept"
        if is_online and begun.replay:
            kept = "parameters, optimiser, counters, environments and replay are kept"
        changed = "batches and random actions are drawn" if is_online else "the data is divided"
        before, now = checkpoint.hosts, parts.hosts.count
        return (
            f"{before} process{'es' * (before > 1)} wrote the checkpoint, and {now} continue{'s' * (now == 1)} from "
            f"it: {kept}, and {changed} differently, so the results differ in bits"
        )
    mesh = checkpoint.counters["loop"].get("mesh", {"data": 1, "model": 1})
    if mesh == parts.placement.sizes:
        return ""
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
    return (
        f"restored from a mesh of {sizes} on one of {parts.placement}: another mesh rounds sums differently, so the "
        "results may differ in bits"
    )


def _restore(parts: _Parts, begun: Start, checkpoint: Checkpoint, stopped: Callable[[], bool]) -> None:
    """Restores the loop from a checkpoint, and then frees the state with which the loop was built.

    Raises:
      Stopped: a signal came meanwhile.
      UserError: another number of processes wrote the checkpoint, and the loop has no `deal`.
    """
    from rlcls.runs.signals import unless_stopped
    from rlcls.training import Dealing

    loop = parts.loop
    fresh = loop.save()
    rows = fresh.rows if begun.replay else None
    with phase("reading the checkpoint"):
        if not begun.is_dealt:
            saved = checkpoint.saved(fresh.tree, rows)
        elif isinstance(loop, Dealing):
            saved = checkpoint.dealt(fresh.tree, rows, loop, parts.hosts.index)
        else:
            raise UserError(
                f"{type(loop).__qualname__} has no `deal`, so only as many processes as wrote the checkpoint "
                f"({checkpoint.hosts}) can continue from it"
            )
    with phase("replaying actions") as tick:
        loop.restore(saved, unless_stopped(stopped, tick))


def _drive(
    parts: _Parts, begun: Start, path: Path, wandb: WandB | None, received: list[int], seconds: float
) -> None:
    """Runs the loop to its end or to a signal, with its metrics and its display."""
    from rlcls.cli import clipping
    from rlcls.runs import HOSTS, Checkpoints, Metrics, Progress, run
    from rlcls.runs.run import last_shown

    config, loop, hosts = parts.config, parts.loop, parts.hosts
    checkpoints = Checkpoints(path, config.checkpoint.keep, begun.segments, hosts)
    # Every process but the first writes its own metrics, with the episodes of its environments.
    own = path / HOSTS / str(hosts.index) if hosts.index else path
    own.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(
        own,
        unit=loop.unit,
        tensorboard=config.logging.tensorboard and hosts.index == 0,
        wandb=wandb,
        position=begun.metrics,
    )
    first, is_online = loop.counts[loop.unit], "replay" in config
    min_size = config.replay.get("min_size", 0) if is_online else 0
    # Programs compile once more for the arrays of a checkpoint, so the first steps after a resume are slow.
    resumed_from = first + config.logging.every if begun.checkpoint else 0
    progress = Progress(
        config.steps,
        start=first,
        steady_from=max(resumed_from, min_size if begun.replay else first + min_size),
        expected_pace=seconds,
        unit=parts.unit,
        frame_skip=parts.env.frame_skip if is_online else None,
    )
    with contextlib.closing(metrics):
        if not begun.replay:
            metrics.write("refill", loop.counts)
        with progress:
            run(
                loop,
                steps=config.steps,
                evaluators=parts.evaluators,
                metrics=metrics,
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint.every,
                keep_every=config.checkpoint.keep_every,
                keep_best=config.checkpoint.keep_best,
                stopped=lambda: bool(received),
                hosts=hosts,
                unfinished=begun.checkpoint.counters["unfinished"] if begun.checkpoint else (),
                best=begun.best,
                is_saved=hosts.broadcast(begun.is_exact),
                progress=progress,
                shown=last_shown(own) if begun.checkpoint else None,
                widen=lambda: clipping.advice(config, getattr(loop, "replay", None)),
            )


def _header(parts: _Parts, path: Path, seconds: float) -> None:
    """Prints what is trained, and when it is expected to end."""
    from rlcls.cli import build, run_config
    from rlcls.runs.folder import facts
    from rlcls.runs.progress import UNMEASURED, header

    config, loop, env, device, unit = parts.config, parts.loop, parts.env, parts.device, parts.unit
    cores = facts()["cores"]
    left = config.steps - loop.counts[loop.unit]
    end = datetime.datetime.now() + datetime.timedelta(seconds=left * seconds * (1 + UNMEASURED))
    rows = {
        "game": ", ".join(run_config.games(config)) or env.name,
        "protocol": env.describe(),
        "recipe": f"{config.choices.recipe}, {config.steps:,} {unit}",
        "agent": config.choices.agent,
        "head": _head_line(config),
        "network": build.describe_network(config, parts.agent),
        "device": f"{device.platform} ({device.device_kind}, {cores} core{'s' * (cores != 1)}){_mesh(parts.placement)}",
        "run folder": str(path),
        "expected end": f"{end:%Y-%m-%d %H:%M} ({seconds * 1e3:.2f} ms an {unit[:-1]}, "
        f"and {UNMEASURED:.0%} for evaluations and checkpoints)",
    }
    header({name: value for name, value in rows.items() if value})


def _mesh(placement: Placement) -> str:
    """The mesh, and the number of visible devices; empty if there is only one."""
    import jax

    used, visible = len(placement.devices), len(jax.devices(placement.devices[0].platform))
    return f"; {used} of {visible} devices, mesh of {placement}" if visible > 1 else ""


def _head_line(config: DictConfig) -> str:
    """The name of the loss and its options in one line."""
    options = {name: value for name, value in config.loss.items() if name not in ("_target_", "name")}
    return " ".join([config.choices.loss, *(f"{name}={value}" for name, value in options.items())])


def _finished_at(path: Path, steps: int) -> int | None:
    """The units of the newest checkpoint if the run in this folder ended with it, at `steps` or later."""
    from rlcls.runs.checkpoint import last_written, load

    # Reading a checkpoint hashes its files, so it is read only if the record does not answer the question. 0 means a
    # damaged record.
    last = last_written(path)
    if last is None or 0 < last < steps:
        return None
    newest, _ = load(path, replay=False)
    ended = newest is not None and newest.steps >= steps and not newest.counters["unfinished"]
    return newest.steps if newest and ended else None


def _picture(path: Path) -> str:
    """Draws the learning curve. Returns the end of a sentence: the path of the picture, or why there is none."""
    from rlcls.plotting.curves import learning_curve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return f"; learning curve: {learning_curve(path)}"
        except UserError as error:
            return f"; no learning curve: {error}"


def _outcome(loop: Loop, steps: int, stopped: list[int]) -> str:
    count, unit = loop.counts[loop.unit], loop.unit.replace("_", " ")
    if stopped:
        return f"stopped by {_name(stopped)} at {unit[:-1]} {count:,} and saved; the same command continues from there"
    return f"finished {count:,} of {steps:,} {unit}"


def _name(received: list[int]) -> str:
    """The name of the first signal that came, such as SIGINT."""
    return signal.Signals(received[0]).name


if __name__ == "__main__":
    # Ctrl-C ends the process at once until there is something to save. As an exception it could be lost in an import.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
