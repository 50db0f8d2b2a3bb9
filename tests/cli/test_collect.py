"""`python -m rlcls.collect` records the replay of a run, or the episodes that a policy plays."""

import contextlib
import itertools
import json
import os
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import collect, trained
from rlcls._errors import UserError
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.datasets import BEGINS, CUT, Layout, Recording, Streams, Transitions, Writer, playing, recording
from rlcls.envs import gymnasium as gymnasium_envs
from rlcls.envs import probe
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.replay import FrameReplay
from rlcls.runs import Checkpoints
from rlcls.training.loop import Saved

STREAMS, ROWS = 3, 150
SAMPLING = {"n_step": 3, "gamma": 0.9, "reward_clip": 1.0}


def history(random):
    """Vector steps with terminals, truncations and lost lives. No two frames are equal."""
    pending, starts = np.zeros(STREAMS, bool), np.ones(STREAMS, bool)
    for _ in range(ROWS):
        frames = random.integers(0, 256, (STREAMS, 4, 84, 84), np.uint8)
        over = ~pending & (random.random(STREAMS) < 0.1)
        cut = ~pending & ~over & (random.random(STREAMS) < 0.05)
        lost = ~pending & ~over & ~cut & (random.random(STREAMS) < 0.1)
        rewards = random.normal(size=STREAMS).astype(np.float32)
        yield frames, random.integers(0, 2, STREAMS), np.where(pending, 0, rewards), over | lost, starts
        starts, pending = pending, over | cut


@pytest.fixture(scope="module")
def replay_run(tmp_path_factory):
    """A run folder with two checkpoints of a replay whose oldest rows have been overwritten, and that replay."""
    run_dir = tmp_path_factory.mktemp("replay") / "run"
    config = compose(
        ["env=probe", "game=probe/policy", "+env.pixels=true", "env.num_envs=3", "replay.capacity=300"]
    )
    run_dir.mkdir()
    OmegaConf.save(config, run_dir / "config.yaml")
    env = build.environment(config)
    replay = FrameReplay.of(env, 300, **SAMPLING)
    checkpoints = Checkpoints(run_dir, keep=1)
    for row, step in enumerate(history(np.random.default_rng(0)), 1):
        replay.add(*step)
        if row in (80, ROWS):
            arrays, counters = replay.save()
            tree = {"acting": np.zeros(1)}
            checkpoints.save(
                row, Saved(tree, arrays, {"replay": counters}, replay), metrics={}, unfinished=[]
            )
    return run_dir, replay


def test_a_recorded_replay_has_the_transitions_that_the_replay_samples(replay_run, tmp_path, capsys):
    run_dir, replay = replay_run
    assert collect.main([f"run={run_dir}", f"out={tmp_path}/a"]) == 0, capsys.readouterr().err
    data = Transitions(Recording(tmp_path / "a"), **SAMPLING)
    assert data.recording.columns.num_rows == STREAMS * 100 == replay.size
    batch, where = replay.sample(2000, 0, 0)
    assert len(set(zip(where.streams.tolist(), where.rows.tolist(), strict=True))) > 200
    place = {frame.tobytes(): row for row, frame in enumerate(data.recording.columns.frames)}
    recorded = data.at(np.array([place[frame.tobytes()] for frame in batch.observation[:, -1]]))
    for name in ("observation", "action", "reward", "discount", "next_observation"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(recorded, name), name)
    manifest = data.recording.manifest
    assert not manifest.layout.rewards_clipped and manifest.layout.stack == 4
    assert manifest.source["agent_steps"] == ROWS and manifest.source["environment"] == "probe/policy"


def test_a_fraction_of_a_replay_is_its_first_part_by_time(replay_run, tmp_path, capsys):
    run_dir, replay = replay_run
    assert collect.main([f"run={run_dir}", "fraction=0.25", f"out={tmp_path}/a"]) == 0
    columns = Recording(tmp_path / "a").columns
    expected = replay.read(50, 75)["frames"].reshape(-1, 84, 84)
    assert {f.tobytes() for f in columns.frames} == {f.tobytes() for f in expected}
    assert "75 rows" in capsys.readouterr().out and (columns.starts == CUT).sum() <= STREAMS


def leaning(observations, starts, part, step):
    """Pushes the cart towards the side to which its pole leans."""
    return (observations[:, 2] > 0).astype(np.int32)


def slow_oracle(seeds, most_episodes):
    """The rows (observation, action, reward, terminal) of the episodes that start first, each environment alone."""
    episodes = []
    for number, seed in enumerate(seeds):
        env = gymnasium_envs.make("CartPole-v1", 1, max_episode_steps=30)
        observation, _ = env.reset(seed=np.array([seed]))
        rows, begun = [], 0
        for step in range(1, 1000):
            action = leaning(observation, None, 0, 0)
            after, reward, terminated, _, info = env.step(action)
            rows.append((*observation[0].tolist(), action[0], reward[0], terminated[0]))
            if info["episode_start"][0]:
                episodes.append((begun, number, rows))
                rows, begun = [], step
            observation = after
        env.close()
    return [rows for *_, rows in sorted(episodes)[:most_episodes]]


def test_recorded_episodes_are_those_that_each_environment_plays_alone(tmp_path):
    env, seeds = gymnasium_envs.make("CartPole-v1", 3, max_episode_steps=30), np.array([5, 6, 7])
    counts = []
    with Writer(tmp_path / "a", playing.layout_of(env), {}) as writer:
        playing.play(writer, env, leaning, lambda part: seeds, episodes=8, tick=lambda *c: counts.append(c))
        columns = writer.finish().columns
    env.close()
    rows = [(*f.tolist(), a, r, t) for f, a, r, t, _ in zip(*columns, strict=True)]
    begins = np.flatnonzero(columns.starts == BEGINS)
    episodes = [rows[first:last] for first, last in itertools.pairwise([*begins, len(rows)])]
    assert sorted(episodes) == sorted(slow_oracle(seeds, 8))
    ended = np.logical_or.reduceat(columns.terminals, begins)
    assert ended.any() and not ended.all()  # some poles fall, and the time limit stops others
    assert counts[-1] == (columns.num_rows, 8) and counts == sorted(counts)


RANDOM = (gymnasium_envs.GymnasiumEnv, ["env=gymnasium", "env.id=CartPole-v1", "policy=random"])
# Within a part the policy has noise levels, and the environments have the states that their experts assume.
NOISY = (JaxVectorEnv, ["env=pick", "policy=scripted", "noise=mixed", "levels=0.1,0.4"])


@pytest.mark.parametrize(
    ("played", "limit"), [(RANDOM, "steps=333"), (RANDOM, "episodes=20"), (NOISY, "steps=333")]
)
def test_a_killed_command_that_runs_again_makes_the_same_recording(
    played, limit, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(playing, "_PART", 60)
    kind, options = played
    command = [*options, "env.num_envs=3", limit, "seed=3"]
    step, steps, kill_at = kind.recv, [], None

    def recv(env):
        steps.append(1)
        if len(steps) == kill_at:
            raise KeyboardInterrupt
        return step(env)

    monkeypatch.setattr(kind, "recv", recv)
    assert collect.main([*command, f"out={tmp_path}/through"]) == 0, capsys.readouterr().err
    through, unbroken_steps = Recording(tmp_path / "through"), len(steps)
    kill_at = 2 * unbroken_steps - 10
    assert collect.main([*command, f"out={tmp_path}/broken"]) == 130
    with pytest.raises(UserError, match="is unfinished"):
        Recording(tmp_path / "broken")
    assert collect.main([*command, f"out={tmp_path}/broken"]) == 0
    broken = Recording(tmp_path / "broken")
    assert unbroken_steps < len(steps) - unbroken_steps < 2 * unbroken_steps - 10  # only one part is replayed
    assert [c.tobytes() for c in broken.columns] == [c.tobytes() for c in through.columns]
    if limit == "steps=333":
        assert through.columns.num_rows == 333 and "333 / 333 agent steps" in capsys.readouterr().out
    else:
        assert (through.columns.starts == BEGINS).sum() == through.columns.terminals.sum() == 20
        assert set(through.columns.starts) == {0, BEGINS}
    source = json.loads((tmp_path / "broken" / "manifest.json").read_text())["source"]
    assert f"policy={source['policy']}" in options


def test_another_seed_plays_other_episodes(tmp_path, capsys):
    command = ["env=probe", "game=probe/policy", "policy=random", "steps=40"]
    for seed in (0, 1):
        assert collect.main([*command, f"seed={seed}", f"out={tmp_path}/{seed}"]) == 0
    actions = [Recording(tmp_path / name).columns.actions.tolist() for name in "01"]
    assert actions[0] != actions[1]


def test_the_scripted_policy_is_that_of_the_environment(tmp_path, capsys):
    command = ["env=probe", "game=probe/policy", "policy=scripted", "episodes=30", f"out={tmp_path}/a"]
    assert collect.main(command) == 0, capsys.readouterr().err
    columns = Recording(tmp_path / "a").columns
    best = probe.PROBES["probe/policy"].q_values(0.9).max()
    assert (columns.rewards[columns.terminals] == best).all() and columns.terminals.sum() == 30


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A run of 400 agent steps without an update, because compiling one takes long."""
    run_dir = tmp_path_factory.mktemp("played") / "run"
    options = ["env=probe", "game=probe/policy", "recipe=vector", "backbone.hidden=[16]", "env.num_envs=4"]
    config = compose([*options, "replay.min_size=1000", "diagnostics.every=0", "eval.every=0"])
    run_dir.mkdir()
    OmegaConf.save(config, run_dir / "config.yaml")
    env = build.environment(config)
    with contextlib.closing(build.loop(config, build.agent(config, env.spec), env)) as loop:
        for _ in range(100):
            loop.advance()
        saved, counts = loop.save(), loop.counts
        Checkpoints(run_dir, keep=1).save(400, saved, counts=counts, metrics={}, unfinished=[])
    return run_dir


def test_the_policy_of_a_run_acts_as_in_an_evaluation(played, tmp_path, capsys):
    command = ["policy=run", f"run={played}", "epsilon=0", "steps=64", f"out={tmp_path}/a"]
    assert collect.main(command) == 0, capsys.readouterr().err
    recording = Recording(tmp_path / "a")
    agent, acting, _ = trained.load(played)
    expected = agent.act(acting, np.array(recording.columns.frames), jax.random.key(0), 0.0)
    np.testing.assert_array_equal(recording.columns.actions, expected)
    source = recording.manifest.source
    assert (source["run"], source["epsilon"], source["checkpoint"]) == ("run", 0.0, 400)


def test_a_recording_is_finished_once_and_not_mixed_with_another(played, tmp_path, capsys):
    assert collect.main([f"run={played}", f"out={tmp_path}/a"]) == 0, capsys.readouterr().err
    recording = Recording(tmp_path / "a")
    assert recording.columns.num_rows == 400
    assert collect.main([f"run={played}", f"out={tmp_path}/a"]) == 0
    assert collect.main([f"run={played}", "fraction=0.5", f"out={tmp_path}/a"]) == 2
    assert "has a recording with another source or layout; name another folder" in capsys.readouterr().err


def test_mistakes_are_one_line_and_write_nothing(replay_run, played, tmp_path, capsys):
    run_dir, _ = replay_run
    out, random = f"out={tmp_path}/a", ["policy=random", "env=probe", "game=probe/policy"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "frames.bin").write_bytes(b"somebody else's")
    for message, arguments in {
        "say where to write the recording: out=FOLDER": random,
        "say what to record: run=FOLDER, or policy= (random, run, scripted)": [out],
        "unknown policy 'randm'; did you mean 'random'?": [out, "policy=randm"],
        "unknown option 'step'; did you mean 'steps'?": [out, "step=3"],
        "say how much to play: either steps=N or episodes=N": [out, *random],
        "steps=many must be a whole number": [out, *random, "steps=many"],
        "epsilon= applies only to policy=run, not to policy=random": [out, *random, "steps=9", "epsilon=0.1"],
        "fraction= applies only to run=": [out, *random, "steps=9", "fraction=0.1"],
        "say which run plays: run=FOLDER": [out, "policy=run", "steps=9"],
        "steps needs a policy that plays": [out, f"run={run_dir}", "steps=9"],
        "env needs a policy that plays": [out, f"run={run_dir}", "env=probe"],
        "fraction=2 must be a number between 0 and 1": [out, f"run={run_dir}", "fraction=2"],
        "fraction=0 records nothing": [out, f"run={run_dir}", "fraction=0"],
        "is not a run folder": [out, f"run={tmp_path}"],
        "unknown env 'atrai'; did you mean 'atari'?": [out, "policy=random", "env=atrai", "steps=9"],
        "CartPole-v1 has no policy of its own": [out, "policy=scripted", "env=gymnasium", "steps=9"],
        "has observations float32 [4]": [out, "policy=run", f"run={played}", "env=gymnasium", "steps=9"],
        "mine has other files, such as frames.bin": [f"out={tmp_path}/mine", *random, "steps=9"],
    }.items():
        assert collect.main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "mine" / "frames.bin").read_bytes() == b"somebody else's"


def test_rules_that_concern_only_training_do_not_apply_to_a_policy_that_plays(tmp_path, capsys):
    many = ["policy=random", "env=probe", "game=probe/policy", "env.num_envs=5000", "steps=5000"]
    assert collect.main([*many, f"out={tmp_path}/a"]) == 0, capsys.readouterr().err


def test_a_recording_whose_output_nobody_reads_is_finished(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        options = ["policy=random", "env=probe", "game=probe/policy", "steps=50"]
        assert collect.main([*options, f"out={tmp_path}/a"]) == 0
    assert Recording(tmp_path / "a").columns.num_rows == 50


def test_a_second_writer_says_that_it_waits(tmp_path, monkeypatch):
    layout = Layout(game="Pong", frame_shape=(84, 84), num_actions=6)
    names = []

    @contextlib.contextmanager
    def phase(name):
        names.append(name)
        first.__exit__(None, None, None)
        yield

    monkeypatch.setattr(recording, "phase", phase)
    first = Writer(tmp_path / "a", layout, {})
    with Writer(tmp_path / "a", layout, {}):
        assert names == [f"waiting for another process that writes {tmp_path / 'a'}"]


def test_a_long_episode_is_recorded_in_little_memory(tmp_path):
    layout = Layout(game="Pong", frame_shape=(84, 84), num_actions=6)
    frames = np.random.default_rng(0).integers(0, 256, (16, 84, 84), np.uint8)
    rows = 4000  # 28 MB
    with Writer(tmp_path / "a", layout, {}) as writer:
        streams = Streams(writer, 1)
        tracemalloc.start()
        for row in range(rows):
            one, zero = row % 16, np.zeros(1)
            streams.add(frames[one : one + 1], zero.astype(int), zero, zero > 0, np.array([row == 0]))
        streams.close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        recorded = writer.finish().columns.frames
    assert peak < 12 << 20
    assert all((recorded[row] == frames[row % 16]).all() for row in range(0, rows, 37))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observation": {"a": jax.ShapeDtypeStruct((1,), "float32")}},
            "its observations are several arrays",
        ),
        ({"action": jax.ShapeDtypeStruct((4,), "int32")}, "its actions are 4 tokens"),
    ],
)
def test_an_environment_that_cannot_be_recorded_is_refused(change, message):
    env = probe.make("probe/policy", 1)
    env.spec = env.spec._replace(**change)
    with pytest.raises(UserError, match=message):
        playing.layout_of(env)
