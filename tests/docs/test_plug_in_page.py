"""Every file of the page about parts of one's own trains by the command below it, and what does not fit is one line."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from rlcls.train import main

PAGE = (Path(__file__).parents[2] / "docs" / "plug-in.md").read_text()
SHORT = ["env.num_envs=4", "replay.capacity=2000", "replay.min_size=200", "training.batch_size=16"]
SHORT += ["checkpoint.every=1000", "logging.every=500", "logging.tensorboard=false", "eval.episodes=4"]
FILES = {
    name: text for text in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    for name in re.findall(r"^# (\w+)\.py$", text, flags=re.M)
}  # fmt: skip
COMMANDS = [
    shlex.split(line)[3:]
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S)
    for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the page's files in it, as a user would have them."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


def test_every_file_has_a_command():
    named = {
        word.partition("=")[2].partition(".")[0]
        for command in COMMANDS
        for word in command
        if "_target_" in word
    }
    assert named == FILES.keys() and len(COMMANDS) == len(FILES) == 7


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:40])
def test_a_part_of_ones_own_trains(command, folder, capsys):
    short = [
        option
        for option in SHORT
        if "loop=offline" not in command or not option.startswith(("replay", "env"))
    ]
    assert main([*command, *short, "steps=1000", "run_dir=run", "eval.every=1000"]) == 0, (
        capsys.readouterr().err
    )
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    kinds = {line["kind"] for line in lines}
    assert {"train", "eval"} <= kinds
    if "evals" in " ".join(command):
        assert [line["agent_steps"] for line in lines if line["kind"] == "gap"] == [500, 1000]
    if "loop=offline" in command:
        assert lines[-1]["return_mean"] == 1.0 and lines[-1]["updates"] == 1000


MISFITS = {
    "agent._target_=misfit.NoActing": "agent: misfit.NoActing has no acting and no update",
    "agent._target_=misfit.NoActing +agent.foo=1": "agent.foo: misfit.NoActing takes no 'foo'",
    "env._target_=misfit.no_start": "env: misfit.NoStart has no episode_start in the info of reset",
    "backbone._target_=misfit.Flat": "agent: Flat returns features of shape (1,), not [batch, num_features]",
    "data._target_=misfit.NoActing loop=offline": "data: ",
    "data._target_=coin.Coin": "a data set needs loop=offline",
    "loop=offline": "loop=offline needs a data set",
    "agent._target_=nowhere.Agent": "agent._target_=nowhere.Agent: No module named 'nowhere'",
    "agent._target_=misfit.OneAction": "agent: misfit.OneAction.act returns int32 [] for 2 observations; it must",
    "env._target_=misfit.flat": "env: misfit.FlatEnv.step returns observations float32 [2], but its spec says float32",
    "data._target_=misfit.Nothing loop=offline": "data: misfit.Nothing.sample must return (Transition, tuple of",
    "data._target_=misfit.NanRewards loop=offline": "data: misfit.NanRewards: the reward is not finite at row ",
    "+evals.mine._target_=misfit.NoActing +evals.mine.every=5": "evals.mine: ",
}


@pytest.mark.untyped
@pytest.mark.parametrize("options", MISFITS)
def test_what_does_not_fit_is_one_line_and_writes_nothing(options, folder, capsys):
    (folder / "misfit.py").write_text(
        """
import coin
from flax import nnx

from rlcls.agents import DQN
from rlcls.envs import probe


class NoActing:
    def __init__(self, spec, make_backbone, head):
        pass

    def init(self, key):
        pass

    def act(self, acting, observations, key, epsilon):
        pass


class NoStart(probe.ProbeVectorEnv):
    def reset(self, **arguments):
        observations, _ = super().reset(**arguments)
        return observations, {}


def no_start(num_envs):
    return NoStart(probe.PROBES["probe/policy"], num_envs)


class OneAction(DQN):
    def act(self, *arguments):
        return super().act(*arguments)[0]


class FlatEnv(probe.ProbeVectorEnv):
    def recv(self):
        observations, *rest = super().recv()
        return observations[:, 0], *rest


def flat(num_envs):
    return FlatEnv(probe.PROBES["probe/policy"], 2)


class Nothing(coin.Coin):
    def sample(self, size, seed, number):
        return None


class NanRewards(coin.Coin):
    def __init__(self):
        super().__init__()
        self._rewards *= float("nan")


class Flat(nnx.Module):
    def __init__(self, observation_shape, *, rngs):
        self.num_features = 8

    def __call__(self, observations):
        return observations[:, 0]
"""
    )
    before = sorted(folder.rglob("*"))
    assert main(["env=probe", "game=probe/policy", "backbone=mlp", *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {MISFITS[options]}") and len(error.splitlines()) == 1, error
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == [
        path for path in before if "__pycache__" not in path.parts
    ]
    sys.modules.pop("misfit", None)


def test_a_part_that_breaks_while_the_run_goes_on_is_saved_and_the_same_command_continues(folder, capsys):
    (folder / "breaks.py").write_text(
        """
import pathlib

from rlcls.envs import probe


class Breaks(probe.ProbeVectorEnv):
    steps = 0

    def recv(self):
        self.steps += pathlib.Path("run/metrics.jsonl").exists()  # which no warming up writes
        if self.steps > 100 and pathlib.Path("broken").exists():
            raise ZeroDivisionError("a bug of its author's")
        return super().recv()


def make(num_envs):
    return Breaks(probe.PROBES["probe/policy"], num_envs)
"""
    )
    command = [
        "env._target_=breaks.make",
        "backbone=mlp",
        *SHORT,
        "steps=800",
        "eval.every=0",
        "run_dir=run",
    ]
    command[command.index("checkpoint.every=1000")] = "checkpoint.every=100000"
    (folder / "broken").touch()
    with pytest.raises(ZeroDivisionError) as error:
        main(command)
    (note,) = error.value.__notes__
    steps = re.fullmatch(r"saved at agent step ([\d,]+); the same command continues from there", note)[1]
    (folder / "broken").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert f"resuming run at agent step {steps}\n" in capsys.readouterr().out
    sys.modules.pop("breaks", None)
