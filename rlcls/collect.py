"""Records experience: `python -m rlcls.collect env=atari game=Pong policy=random steps=100000 out=recordings/Pong`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcls._errors import UserError, command, nearest
from rlcls.cli.arguments import parse, probability, whole_number

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcls.datasets import Recording, Writer
    from rlcls.datasets.playing import Act
    from rlcls.envs.base import HostEnv
    from rlcls.runs.segments import Segment

_POLICIES = ("random", "run", "scripted")
_PLAYING = ("policy", "steps", "episodes", "seed", "epsilon", "checkpoint", "lane", "noise", "levels")
_LEVELS = "0,0.1,0.2,0.35,0.5"
_OPTIONS = ("run", "out", "fraction", *_PLAYING)
_MOST = 10**12
_HELP = (
    """Records experience for offline learning, see docs/datasets.md.

usage: python -m rlcls.collect run=RUN_FOLDER out=FOLDER [fraction=SHARE]
       python -m rlcls.collect policy=random [env=NAME ...] steps=N out=FOLDER [name=value ...]
       python -m rlcls.collect policy=scripted [env=NAME ...] episodes=N out=FOLDER [noise=NAME] [levels=P,P,...]
       python -m rlcls.collect policy=run run=RUN_FOLDER [env=NAME ...] steps=N out=FOLDER [name=value ...]

The first form records what the replay in a run's newest checkpoint holds; the others play.

out=FOLDER        the recording; a command that was killed goes on with it when it is given again
fraction=SHARE    only the first part of the replay by time, such as 0.1; default: 1
policy=NAME       random: all actions equally likely; run: what a run has learnt; scripted: the environment's own
                  policy, where it has one
env=NAME ...      the environment, by the options of rlcls.train: env, game, task, env.num_envs and so on; default: with
                  policy=run the run's own, otherwise Pong
steps=N           agent steps, each a row of the recording; the episodes under way at the end are cut
episodes=N        whole episodes, instead of steps=
seed=N            determines the environments and the random actions; default: 0
epsilon=P         with policy=run: the probability of a random action; default: that of the environment's evaluation
checkpoint=STEP   with policy=run: latest (the default), best, or agent steps (offline: updates)
lane=K            with policy=run: which of the seeds and settings of a run that trained several; default: 0
noise=NAME        with policy=scripted: closed_loop (the policy sees every state), replay (it sees only the first one of
                  an episode), or mixed (it looks every 1, 4 or 8 steps or never again); default: no noise
levels=P,P,...    with noise=: probabilities of a random action, one of them for each episode; default:
                  """
    + _LEVELS
)


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    environment = [argument for argument in argv if re.match(r"\+?(env|game)\b|task=", argument)]
    arguments = parse([argument for argument in argv if argument not in environment], _OPTIONS)
    if arguments.help:
        print(_HELP)
        return 0
    options = arguments.options
    if "out" not in options:
        raise UserError("say where to write the recording: out=FOLDER")
    from rlcls.runs.output import unread_is_dropped

    with unread_is_dropped():
        return _collect(options, environment)


def _collect(options: dict[str, str], environment: list[str]) -> int:
    if "policy" in options:
        recording = _play(options, environment)
    elif "run" in options:
        if extra := [name for name in _PLAYING if name in options] or environment:
            name = extra[0].partition("=")[0]
            raise UserError(
                f"{name} needs a policy that plays, such as policy=run; run= alone records a replay"
            )
        recording = _record_replay(Path(options["run"]), options, Path(options["out"]))
    else:
        raise UserError(f"say what to record: run=FOLDER, or policy= ({', '.join(_POLICIES)})")
    print(f"{recording.path}: {recording.columns.num_rows:,} rows, {recording.identity[:16]}")
    return 0


def _play(options: dict[str, str], environment: list[str]) -> Recording:
    """Records what a policy plays."""
    from rlcls.cli import build, resources
    from rlcls.cli.compose import compose
    from rlcls.datasets import Writer
    from rlcls.datasets.playing import layout_of, play
    from rlcls.envs.base import environment_seeds
    from rlcls.runs import Progress
    from rlcls.training.xla import Use

    policy = options["policy"]
    if policy not in _POLICIES:
        raise UserError(f"unknown policy {policy!r}{nearest(policy, _POLICIES)}")
    if "fraction" in options:
        raise UserError("fraction= applies only to run= without policy=")
    for name in ("run", "epsilon", "checkpoint", "lane", "noise", "levels"):
        needed = "scripted" if name in ("noise", "levels") else "run"
        if name in options and policy != needed:
            raise UserError(f"{name}= applies only to policy={needed}, not to policy={policy}")
    if policy == "run" and "run" not in options:
        raise UserError("say which run plays: run=FOLDER")
    limits = {name: whole_number(options, name, 1, _MOST) for name in ("steps", "episodes")}
    if (limits["steps"] is None) == (limits["episodes"] is None):
        raise UserError("say how much to play: either steps=N or episodes=N")
    seed = whole_number(options, "seed", 0, 2**32 - 1) or 0
    epsilon = probability(options, "epsilon")

    resources.allow_open_files()
    own = policy == "run" and not environment
    config = _run_config(options) if own else compose(environment, trains=False)
    with contextlib.closing(build.environment(config)) as env:
        act, facts = _policy(policy, options, env, seed, epsilon)
        source = {
            **_facts(env),
            "policy": policy,
            **facts,
            **{name: limit for name, limit in limits.items() if limit is not None},
            "seed": seed,
            "num_envs": env.num_envs,
        }
        counts_rows = limits["steps"] is not None
        with Writer(options["out"], layout_of(env), source) as writer:
            if writer.complete:
                return writer.finish()
            progress = Progress(
                limits["steps"] or limits["episodes"] or 0,
                start=writer.manifest.rows if counts_rows else (writer.progress or (0, 0))[1],
                unit="agent steps" if counts_rows else "episodes",
                frame_skip=env.frame_skip if counts_rows and env.frame_skip > 1 else None,
            )
            with progress:
                play(
                    writer,
                    env,
                    act,
                    lambda part: environment_seeds((seed, Use.COLLECTION, part), env.num_envs),
                    **limits,
                    tick=lambda rows, episodes: progress.update(rows if counts_rows else episodes),
                )
            return writer.finish()


def _policy(
    name: str, options: dict[str, str], env: HostEnv, seed: int, epsilon: float | None
) -> tuple[Act, dict[str, Any]]:
    """The policy of that name, and what it depends on besides the environment and the seed."""
    if name == "random":
        sample = _random_actions(env)
        return lambda observations, starts, part, step: sample(_generator(seed, part, step)), {}
    if name == "run":
        return _run_policy(options, env, seed, epsilon)
    return _scripted_policy(options, env, seed)


def _scripted_policy(options: dict[str, str], env: HostEnv, seed: int) -> tuple[Act, dict[str, Any]]:
    """The environment's own policy, disturbed if `noise` is given; also returns the kind and levels of the noise."""
    from rlcls.datasets.noise import NoisyExpert

    scripted: Any = getattr(env, "scripted_actions", None)
    if scripted is None:
        raise UserError(f"policy=scripted: {env.name} has no policy of its own (a method scripted_actions)")
    if "noise" not in options:
        if "levels" in options:
            raise UserError("levels= needs noise=closed_loop, mixed or replay")
        return lambda observations, starts, part, step: scripted(), {}
    text = options.get("levels", _LEVELS)
    try:
        inspect.signature(scripted).bind(None)
    except TypeError:
        raise UserError(
            f"noise={options['noise']}: {env.name}.scripted_actions must take look, which environments see their state"
        ) from None
    try:
        levels = [float(level) for level in text.split(",")]
        generator = functools.partial(_generator, seed)
        policy = NoisyExpert(scripted, options["noise"], levels, _random_actions(env), generator)
    except ValueError as error:
        raise UserError(f"noise={options['noise']} levels={text}: {error}") from error
    return policy, {"noise": options["noise"], "levels": levels}


def _generator(seed: int, part: int, step: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one step; streams are independent."""
    from rlcls.training.xla import Use

    return np.random.Generator(np.random.Philox(key=[seed, Use.COLLECTION], counter=[0, step, part, stream]))


def _random_actions(env: HostEnv) -> Callable[[np.random.Generator], np.ndarray]:
    """Draws an action for each environment, all equally likely."""
    spec, shape = env.spec, (env.num_envs, *env.spec.action.shape)
    low, high = spec.action_range or (np.zeros(()), np.zeros(()))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"random actions: an action of {env.name} has no lowest and highest value")

    def sample(random: np.random.Generator) -> np.ndarray:
        if spec.num_actions is None:
            return random.uniform(low, high, shape).astype(np.float32)
        return random.integers(spec.num_actions, size=shape, dtype=np.int32)

    return sample


def _run_config(options: dict[str, str]) -> DictConfig:
    """The configuration of the run that plays, or of one of its lanes."""
    from rlcls import trained
    from rlcls.runs import read_config

    return trained.lane_config(read_config(Path(options["run"])), _lane(options))


def _lane(options: dict[str, str]) -> int:
    return whole_number(options, "lane", 0, _MOST) or 0


def _run_policy(
    options: dict[str, str], env: HostEnv, seed: int, epsilon: float | None
) -> tuple[Act, dict[str, Any]]:
    """A trained run acts; also returns the facts on which its actions depend."""
    import jax

    from rlcls import trained
    from rlcls.cli import build, evaluators
    from rlcls.files import Seal
    from rlcls.phases import phase
    from rlcls.runs.checkpoint import MANIFEST
    from rlcls.runs.lanes import is_compiled
    from rlcls.training import xla

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files that training removes meanwhile
    xla.choose_device(None)
    xla.cache_compilations()
    run_dir, wanted, lane = Path(options["run"]), options.get("checkpoint", "latest"), _lane(options)
    config = _run_config(options)
    with contextlib.closing(build.one_environment(config)) as learnt_in, phase("reading the checkpoint"):
        (agent, acting, spec), chosen, remarks = trained.read(config, learnt_in, run_dir, wanted, lane)
        _, digest = Seal.of(chosen.folder / MANIFEST)
    for line in remarks:
        print(f"note: {line}", file=sys.stderr)
    if other := evaluators.other_task(spec, env):
        raise UserError(f"{run_dir} cannot play: it learnt from {other}")
    epsilon = env.evaluation_epsilon if epsilon is None else epsilon
    (key,) = xla.keys(seed, xla.Use.COLLECTION)

    def act(acting: Any, observations: Any, part: Any, step: Any) -> Any:
        step_key = jax.random.fold_in(jax.random.fold_in(key, part), step)
        return agent.act(acting, observations, step_key, epsilon)

    compiled = xla.jit(act)

    def policy(observations: Any, starts: Any, part: int, step: int) -> np.ndarray:
        arguments = jax.device_put((observations, part, step))
        return np.array(jax.device_get(compiled(acting, *arguments)))

    facts = {"run": run_dir.name, "checkpoint": chosen.steps, "checkpoint_sha256": digest, "epsilon": epsilon}
    return policy, facts | ({"lane": lane} if is_compiled(config) else {})


def _record_replay(run_dir: Path, options: dict[str, str], out: Path) -> Recording:
    """Records the replay of a run's newest checkpoint."""
    from rlcls.cli import build, resources
    from rlcls.datasets import Writer
    from rlcls.datasets.playing import layout_of
    from rlcls.phases import phase
    from rlcls.runs import checkpoint, read_config
    from rlcls.runs.lanes import is_compiled

    fraction = probability(options, "fraction")
    if fraction == 0:
        raise UserError("fraction=0 records nothing; give a share above 0")
    resources.allow_open_files()
    config = read_config(run_dir)
    with phase("reading the checkpoint"):
        chosen, damaged = checkpoint.load(run_dir)
    for each in damaged:
        print(f"note: {each}; falling back to the one before", file=sys.stderr)
    if chosen is None:
        raise UserError(f"{run_dir} has no checkpoint that is whole")
    if is_compiled(config) and "replay" in config:
        raise UserError(
            f"{run_dir}: the replays of loop=compiled cannot be recorded; policy=run lane=K epsilon=P records what a "
            "lane plays"
        )
    if not chosen.segments:
        raise UserError(f"{run_dir} has no replay: it learnt from recorded data")
    with contextlib.closing(build.one_environment(config)) as env:
        layout, facts = layout_of(env), _facts(env)
    source = {
        **facts,
        "policy": "the run's own while it learnt",
        "run": run_dir.name,
        "agent_steps": chosen.steps,
        "fraction": 1.0 if fraction is None else fraction,
        "segments": [digest for _, digest in (segment.seal for segment in chosen.segments)],
    }
    with Writer(out, layout, source) as writer:
        if not writer.complete:
            _append_replay(writer, chosen.segments, config.replay.capacity, source["fraction"])
        return writer.finish()


def _append_replay(writer: Writer, segments: list[Segment], capacity: int, fraction: float) -> None:
    """Appends the rows that a replay of this capacity holds, one segment in memory at a time."""
    from rlcls._errors import one_line
    from rlcls.datasets import Streams
    from rlcls.files import DAMAGED, unpack
    from rlcls.runs import Progress

    def read(segment: Segment) -> dict[str, np.ndarray]:
        try:
            return unpack(segment.path)
        except FileNotFoundError as error:
            raise UserError(
                f"{segment.path} is gone: the run goes on and drops old rows; stop it, and record into an empty folder"
            ) from error
        except DAMAGED as error:
            raise UserError(f"{segment.path} cannot be read: {one_line(error)}") from error

    columns = read(segments[0])
    num_streams, last = columns["actions"].shape[1], segments[-1].last
    first = max(segments[0].first, last - capacity // num_streams)  # the first segment may hold older rows
    last = first + max(1, int((last - first) * fraction))
    streams = Streams(writer, num_streams)
    with Progress((last - first) * num_streams, unit="agent steps") as progress:
        for segment in segments:
            columns = read(segment)
            frames = columns["frames"][:, :, None] if writer.manifest.layout.stack else columns["frames"]
            for row in range(max(first, segment.first), min(last, segment.last)):
                i = row - segment.first
                streams.add(
                    frames[i],
                    *(columns[name][i] for name in ("actions", "rewards", "terminals", "starts")),
                )
                progress.update((row + 1 - first) * num_streams)
    streams.close()


def _facts(env: HostEnv) -> dict[str, Any]:
    """The facts about an environment that a recording keeps."""
    return {
        "made_by": "rlcls.collect",
        "environment": env.name,
        "protocol": env.facts(),
        "rewards": "as the environment gave them, not clipped",
    }


if __name__ == "__main__":
    sys.exit(main())
