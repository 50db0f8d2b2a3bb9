"""Makes reproducible recordings: Pong and Breakout as two agents played them during training.

    python benchmarks/recordings.py play                   # trains the agents and keeps their actions
    python benchmarks/recordings.py record                 # plays the actions again, and compares what is recorded
    python benchmarks/recordings.py record --all-actions   # the same frames, the actions numbered among all 18

Each agent plays 500,000 agent steps of `recipe=fast` in 16 environments that keep their first seeds. Its actions have a
few hundred kilobytes and are among the results. The frames have 3.5 GB per game. The emulator shows the same frames for
the same seeds and actions, so `record` takes minutes and trains nothing. An interrupted `play` continues; an
interrupted `record` begins again.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import _report
import numpy as np

from rlcls.datasets import Streams, Writer
from rlcls.datasets.playing import layout_of
from rlcls.envs import atari
from rlcls.envs.base import environment_seeds
from rlcls.runs import Progress, checkpoint
from rlcls.training.xla import Use

GAMES, SEED, STEPS, ENVIRONMENTS = ("Pong", "Breakout"), 0, 500_000, 16
OPTIONS = [
    "agent=dqn",
    "loss=hlgauss",
    "recipe=fast",
    f"seed={SEED}",
    f"steps={STEPS}",
    f"env.num_envs={ENVIRONMENTS}",
    "training.reseed_every=1000000",  # no new seeds, so the actions since the last seeds are all actions
    "eval.every=0",
    "diagnostics.every=0",
    f"replay.capacity={STEPS}",
]
RESULTS = _report.RESULTS / "recordings"
FOLDER = _report.ROOT / "runs" / "recordings"
ALL_ACTIONS = "all_actions"  # folder of the recordings whose actions are numbered among all 18
# For each game, the numbers of its minimal actions among the 18 actions of the console.
NUMBERS = {"Pong": (0, 1, 3, 4, 11, 12), "Breakout": (0, 1, 3, 4)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["play", "record"])
    parser.add_argument("--games", nargs="+", default=GAMES)
    parser.add_argument("--all-actions", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for game in arguments.games:
        if arguments.part == "play":
            play(game, arguments.folder / f"{game}-run")
        else:
            record(game, arguments.folder, all_actions=arguments.all_actions)


def play(game: str, run_dir: Path) -> None:
    """Trains an agent and writes the actions that its environments received."""
    command = [sys.executable, "-m", "rlcls.train", f"game={game}", *OPTIONS, f"run_dir={run_dir}"]
    subprocess.run(command, env=_report.environment(), check=True)
    newest, _ = checkpoint.load(run_dir, replay=False)
    if newest is None or newest.arrays["seedings"].any():
        raise SystemExit(f"{run_dir} does not hold all actions of the run")
    actions = newest.arrays["sent"].astype(np.uint8)
    RESULTS.mkdir(parents=True, exist_ok=True)
    # Sorted by environment, the actions compress better than sorted by step.
    (RESULTS / f"{game}.actions.zlib").write_bytes(zlib.compress(actions.T.tobytes(), 9))


def record(game: str, folder: Path, *, all_actions: bool = False) -> None:
    """Plays an agent's actions again and records what it saw, in folder/game or folder/all_actions/game."""
    path = RESULTS / f"{game}.actions.zlib"
    if not path.exists():
        raise SystemExit(f"{path} is missing: no agent has played {game} yet; the part play makes it")
    data = zlib.decompress(path.read_bytes())
    actions = np.frombuffer(data, np.uint8).reshape(ENVIRONMENTS, -1).T.astype(np.int32)
    if all_actions:
        actions, folder = np.array(NUMBERS[game], np.int32)[actions], folder / ALL_ACTIONS
    with contextlib.closing(atari.make(game, num_envs=ENVIRONMENTS, full_action_space=all_actions)) as env:
        source = {"made_by": "benchmarks/recordings.py", "game": game, "options": OPTIONS}
        with Writer(folder / game, layout_of(env), source) as writer:
            if not writer.complete:
                _play_again(env, actions, writer)
            recording = writer.finish()
    facts = {
        "rows": recording.columns.num_rows,
        "identity": recording.identity,
        "frames": hashlib.sha256("".join(recording.manifest.sha256["frames"]).encode()).hexdigest(),
    }
    path, name = RESULTS / "recordings.json", f"{ALL_ACTIONS}/{game}" if all_actions else game
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.setdefault(name, facts) != facts:
        raise SystemExit(f"{folder / game} is not the recording of the results: {facts}, not {known[name]}")
    if game in known and known[game]["frames"] != facts["frames"]:
        raise SystemExit(f"{folder / game} has other frames than the recording of the game's own actions")
    path.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{folder / game}: {facts['rows']:,} rows, {facts['identity']}")


def _play_again(env: Any, actions: np.ndarray, writer: Writer) -> None:
    seeds = [environment_seeds((SEED, Use.ENVIRONMENT, number, 0), 1) for number in range(ENVIRONMENTS)]
    observations, _ = env.reset(seed=np.concatenate(seeds))
    starts = np.ones(ENVIRONMENTS, bool)
    streams = Streams(writer, ENVIRONMENTS)
    with Progress(actions.size, unit="agent steps", frame_skip=env.frame_skip) as progress:
        for step, now in enumerate(actions, 1):
            next_observations, rewards, terminated, _, info = env.step(now)
            streams.add(observations, now, rewards, terminated, starts)
            observations, starts = next_observations, np.array(info["episode_start"])
            progress.update(step * ENVIRONMENTS)
    streams.close()


if __name__ == "__main__":
    main()
