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
from typing import TYPE_CHECKING, Any

from rlcls._errors import UserError, command
from rlcls.phases import phase

if TYPE_CHECKING:
    import jax
    from omegaconf import DictConfig

    from rlcls.agents.base import Agent
    from rlcls.distributed import Hosts
    from rlcls.envs.base import HostEnv
    from rlcls.evaluation import Periodic
    from rlcls.runs import Checkpoints, Start
    from rlcls.runs.metrics import WandB
    from rlcls.training import Placement
    from rlcls.training.loop import Loop


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 128 + n when signal n stopped the run."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    # The imports take seconds. What --config and --help print is often written to a file, where nothing else belongs.
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
                # A sweep composes each command where it runs it.
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
    from rlcls.cli import build

    options = build.plain_dict(config)
    compared = {name: value for name, value in options.items() if name != "distributed"}
    with distributed.joined(config.distributed, compared) as hosts:
        return _train_with(config, hosts)


def _train_with(config: DictConfig, hosts: Hosts) -> int:
    """Trains in this process, which may be one of several."""
    from rlcls.runs import HOSTS, Checkpoints, RunFolder, start, together
    from rlcls.runs.metrics import WandB, check_wandb
    from rlcls.runs.signals import Stopped, collected

    with contextlib.ExitStack() as stack, contextlib.ExitStack() as starting:
        starting.enter_context(phase("starting"))
        from rlcls.cli import build, packages, resources
        from rlcls.training import loop as loops
        from rlcls.training import memory, xla

        resources.allow_open_files()
        packages.import_all(tensorboard=config.logging.tensorboard)
        device = xla.choose_device(config.device)
        xla.cache_compilations()
        memory.reuse_freed_memory()
        first = hosts.index == 0
        if config.logging.wandb and first:
            check_wandb(config.logging.wandb)
        own = build.share(config, hosts.index, hosts.count)
        # Every part is built and tried, and so refused, before a file is written; only W&B can still fail later.
        envs: dict[str, HostEnv] = {}
        for name, options_of_game in build.games(own).items():
            envs[name] = build.environment(options_of_game)
            stack.callback(envs[name].close)
        env = next(iter(envs.values()))
        played = f"{len(envs)}-games" if len(envs) > 1 else env.name
        data = build.dataset(own)
        build.check_task(config, envs, data)
        agent = build.agent(config, data.spec if data else env.spec)
        loop = stack.enter_context(contextlib.closing(build.loop(own, agent, env, data)))
        loops.check(loop)
        evaluators = build.evaluators(config, agent, envs, data)
        for each in evaluators:
            stack.callback(getattr(each.evaluator, "close", lambda: None))
        if config.checkpoint.keep_best and len(envs) > 1:
            raise UserError(
                f"checkpoint.keep_best=true compares one return, and {len(envs)} games have one each; "
                "checkpoint.keep_every=N keeps every N-th"
            )
        path, options = build.run_dir(config, played), build.plain_dict(config)
        folder = None
        if first:
            folder = RunFolder(path, options, environment=played, protocol=env.facts())
            stack.enter_context(folder)
        _check_shared(path, hosts)
        starting.close()
        reactions: dict[int, Callable[[], object]] = dict.fromkeys(
            (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1), hosts.ask_stop
        )
        received = stack.enter_context(collected(reactions))
        unit = loop.unit.replace("_", " ")
        if steps := hosts.broadcast(_finished_at(path, config.steps) if first else None):
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
        wandb = None
        if config.logging.wandb and first:
            run_id = begun.metrics["wandb"] if begun.metrics else None
            wandb = WandB(path, config.logging.wandb, unit=loop.unit, run_id=run_id, config=options)
            stack.callback(wandb.close)
        if folder:
            folder.record()
        if begun.checkpoint:
            print(f"resuming {path} at {unit[:-1]} {begun.checkpoint.steps:,}", flush=True)
            if remark := _otherwise(build.placement(config), begun, hosts.count):
                print(f"note: {remark}", file=sys.stderr)
            try:
                _restore(loop, begun, hosts.index, lambda: bool(received) and hosts.count == 1)
            except Stopped:
                print(
                    f"stopped by {_name(received)} before it went on; the same command continues from there"
                )
                return 128 + received[0]
        _header(config, loop, env, agent, device, path, seconds)
        checkpoints = Checkpoints(path, config.checkpoint.keep, begun.segments, hosts)
        # Every process but the first has metrics of its own: the episodes of its environments.
        metrics_dir = path if first else path / HOSTS / str(hosts.index)
        metrics_dir.mkdir(parents=True, exist_ok=True)
        _drive(
            config,
            loop,
            evaluators,
            checkpoints,
            begun,
            metrics_dir,
            wandb,
            received,
            seconds,
            env.frame_skip,
            hosts,
        )
        # A signal after the last step stopped nothing. One that stopped the run may have come to another process.
        is_early = bool(received) or loop.counts[loop.unit] < config.steps
        ended = hosts.broadcast(
            not is_early or _finished_at(path, config.steps) is not None if first else None
        )
        stopped = [] if ended else received or [signal.SIGTERM]
        picture = _picture(path) if first else ""
        print(f"{_outcome(loop, config.steps, stopped)}{picture}", flush=True)
        return 128 + stopped[0] if stopped else 0


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


def _otherwise(placement: Placement, begun: Start, processes: int) -> str:
    """A remark where a run goes on with other processes, or on another mesh, than before; otherwise empty."""
    checkpoint = begun.checkpoint
    assert checkpoint is not None
    if begun.is_dealt:
        is_online = "replay" in checkpoint.counters["loop"]
        kept = [
            "parameters",
            "optimiser",
            "counters",
            *(["environments", "replay"] if is_online and begun.replay else []),
        ]
        anew = "batches and random actions are" if is_online else "the data is"
        return (
            f"{checkpoint.hosts} process{'es' * (checkpoint.hosts > 1)} wrote the checkpoint, and {processes} "
            f"go{'es' * (processes == 1)} on: {', '.join(kept[:-1])} and {kept[-1]} are kept, {anew} dealt out anew, "
            "so the run goes on to other bits"
        )
    before = checkpoint.counters["loop"].get("mesh", {"data": 1, "model": 1})
    if before == placement.sizes:
        return ""
    sizes = ", ".join(f"{axis}={size}" for axis, size in before.items())
    return (
        f"restored from a mesh of {sizes} on one of {placement}: on another mesh sums are rounded otherwise, so the "
        "run may go on to other bits"
    )


def _restore(loop: Loop, begun: Start, host: int, stopped: Callable[[], bool]) -> None:
    """Restores a loop; the state that it began with is freed at the end.

    Raises:
      Stopped: a signal came meanwhile.
      UserError: another number of processes wrote the checkpoint, and the loop cannot deal it out.
    """
    from rlcls.runs.signals import unless_stopped
    from rlcls.training import Dealing

    checkpoint, fresh = begun.checkpoint, loop.save()
    assert checkpoint is not None
    rows = fresh.rows if begun.replay else None
    with phase("reading the checkpoint"):
        if not begun.is_dealt:
            saved = checkpoint.saved(fresh.tree, rows)
        elif isinstance(loop, Dealing):
            saved = checkpoint.dealt(fresh.tree, rows, loop, host)
        else:
            raise UserError(
                f"{type(loop).__qualname__} has no `deal`, so as many processes as wrote the checkpoint "
                f"({checkpoint.hosts}) can go on with it"
            )
    with phase("replaying actions") as tick:
        loop.restore(saved, unless_stopped(stopped, tick))


def _drive(
    config: DictConfig,
    loop: Loop,
    evaluators: list[Periodic],
    checkpoints: Checkpoints,
    begun: Start,
    path: Path,
    wandb: WandB | None,
    received: list[int],
    seconds: float,
    frame_skip: int,
    hosts: Hosts,
) -> None:
    """Runs the loop to its end or to a signal, with its metrics and its display."""
    from rlcls.cli import clipping
    from rlcls.runs import Metrics, Progress, run
    from rlcls.runs.run import last_shown

    metrics = Metrics(
        path,
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
        unit=loop.unit.replace("_", " "),
        frame_skip=frame_skip if is_online else None,
    )
    with contextlib.closing(metrics):
        if not begun.replay:
            metrics.write("refill", loop.counts)
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
                hosts=hosts,
                unfinished=begun.checkpoint.counters["unfinished"] if begun.checkpoint else (),
                best=begun.best,
                is_saved=hosts.broadcast(begun.is_exact),
                progress=progress,
                shown=last_shown(path) if begun.checkpoint else None,
                widen=lambda: clipping.advice(config, getattr(loop, "replay", None)),
            )


def _header(
    config: DictConfig,
    loop: Loop,
    env: HostEnv,
    agent: Agent[Any],
    device: jax.Device,
    path: Path,
    seconds: float,
) -> None:
    from rlcls.cli import build
    from rlcls.runs.folder import facts
    from rlcls.runs.progress import UNMEASURED, header

    cores = facts()["cores"]
    unit = loop.unit.replace("_", " ")
    left = config.steps - loop.counts[loop.unit]
    end = datetime.datetime.now() + datetime.timedelta(seconds=left * seconds * (1 + UNMEASURED))
    rows = {
        "game": ", ".join(build.games(config)) or env.name,
        "protocol": env.describe(),
        "recipe": f"{config.choices.recipe}, {config.steps:,} {unit}",
        "agent": config.choices.agent,
        "head": _head_line(config),
        "network": build.describe_network(config, agent),
        "device": f"{device.platform} ({device.device_kind}, {cores} core{'s' * (cores != 1)}){_mesh(config)}",
        "run folder": str(path),
        "expected end": f"{end:%Y-%m-%d %H:%M} ({seconds * 1e3:.2f} ms an {unit[:-1]}, "
        f"and {UNMEASURED:.0%} for evaluations and checkpoints)",
    }
    header({name: value for name, value in rows.items() if value})


def _mesh(config: DictConfig) -> str:
    """The mesh, and how many devices there are; empty where the only one is used."""
    import jax

    from rlcls.cli import build

    placement = build.placement(config)
    used, visible = len(placement.devices), len(jax.devices(placement.devices[0].platform))
    return f"; {used} of {visible} devices, mesh of {placement}" if visible > 1 else ""


def _head_line(config: DictConfig) -> str:
    """The loss and its options in one line."""
    options = {name: value for name, value in config.loss.items() if name not in ("_target_", "name")}
    return " ".join([config.choices.loss, *(f"{name}={value}" for name, value in options.items())])


def _finished_at(path: Path, steps: int) -> int | None:
    """The units of the newest checkpoint if the run in this folder ended with it, at `steps` or later."""
    from rlcls.runs.checkpoint import last_written, load

    # Reading a checkpoint hashes its files, so it is read only if the record leaves the question open; 0 is a
    # damaged record.
    last = last_written(path)
    if last is None or 0 < last < steps:
        return None
    newest, _ = load(path, replay=False)
    ended = newest is not None and newest.steps >= steps and not newest.counters["unfinished"]
    return newest.steps if newest and ended else None


def _picture(path: Path) -> str:
    """Draws the learning curve; the end of a sentence that says where, or why there is none."""
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
    # Until there is something to save, Ctrl-C ends the process at once: some library's import may swallow an exception.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
