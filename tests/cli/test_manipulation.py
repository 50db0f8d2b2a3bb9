"""`rlcls.collect`, `rlcls.train` and `rlcls.evaluate` with continuous actions, on the pick task."""

import dataclasses
import json
import shutil

import imageio.v3
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlcls import collect, evaluate
from rlcls._errors import UserError
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.datasets import Recording, Transitions
from rlcls.envs import pick
from rlcls.runs import checkpoint, metrics
from rlcls.train import main

RECORD = ["env=pick", "env.num_envs=16", "policy=scripted", "noise=mixed", "levels=0.1,0.3", "episodes=40"]
TRAIN = ["agent=qtransformer", "loss=hlgauss", "env=pick", "data=recording", "agent.bins=5", "agent.width=16"]
TRAIN += ["agent.heads=2", "agent.layers=1", "steps=30", "checkpoint.every=1000", "eval.every=30"]
TRAIN += ["eval.episodes=8", "logging.every=10", "logging.tensorboard=false"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "pick"
    assert collect.main([*RECORD, f"out={path}"]) == 0
    return path


def leaves(run_dir):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore((checkpoint.load(run_dir)[0].folder / "tree").resolve())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_noisy_episodes_are_recorded_with_their_noise_level(recording):
    data = Transitions(Recording(recording))
    source = data.recording.manifest.source
    assert (source["noise"], source["levels"], source["episodes"]) == ("mixed", [0.1, 0.3], 40)
    assert data.spec.action.shape == (4,)
    # Most failures end at the horizon.
    assert data.behaviour_returns["pick"] == data.recording.columns.rewards.sum() / 40
    assert data.sparse_rewards == {"pick": 1.0}


def test_a_q_transformer_stops_resumes_to_the_same_bits_and_is_filmed(
    recording, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = [*TRAIN, f"data.path={recording}"]
    assert main([*command, "run_dir=through"]) == 0, capsys.readouterr().err
    sample = Transitions.sample

    def stopped(self, size, seed, number):
        if (
            number == 15 and (tmp_path / "broken" / "metrics.jsonl").exists()
        ):  # `warm_up` samples before the file exists
            raise RuntimeError("the data is gone")
        return sample(self, size, seed, number)

    monkeypatch.setattr(Transitions, "sample", stopped)
    with pytest.raises(RuntimeError, match="the data is gone"):
        main([*command, "run_dir=broken"])
    monkeypatch.setattr(Transitions, "sample", sample)
    assert main([*command, "run_dir=broken"]) == 0, capsys.readouterr().err
    assert metrics.same(tmp_path / "through", tmp_path / "broken")
    for one, other in zip(leaves(tmp_path / "through"), leaves(tmp_path / "broken"), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = [json.loads(line) for line in (tmp_path / "through" / "metrics.jsonl").read_text().splitlines()]
    (line,) = [row for row in rows if row["kind"] == "eval"]
    assert len(line["returns"]) == 8 and {"conservatism", "q_unseen", "clip_fraction"} <= rows[0].keys()

    for which in ("first", "worst"):
        arguments = ["run=through", "eval.episodes=40", "video=true", f"film={which}"]
        assert evaluate.main(arguments) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "through/evaluations/30_episodes=40.json").read_text())
    for name, episode in (("", 0), ("_film=worst", int(np.argmin(result["returns"])))):
        frames = imageio.v3.imread(tmp_path / f"through/videos/30_episodes=40{name}.mp4")
        assert len(frames) == result["lengths"][episode] + 1 and frames.shape[1:] == (288, 576, 3)


def test_the_film_of_a_later_episode_begins_with_that_episode(tmp_path, recording, monkeypatch, capsys):
    """Two environments play five episodes each. The best episode is not the first one of its environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlcls.evaluation.episodes._MOST_ENVS", 2)
    bc = ["agent=qtransformer_bc", *TRAIN[1:], f"data.path={recording}", "eval.every=0", "run_dir=run"]
    assert main(bc) == 0, capsys.readouterr().err
    step = pick.Pick.step

    def lengthening(self, state, action, key):
        """Episodes are longer if the goal is farther away, and their return is their length."""
        new, observation, _, _, truncated = step(self, state, action, key)
        length = 3 + (10 * new.goal[0]).astype(np.int32)
        over = new.time >= length
        return new, observation, jnp.where(over, length, 0).astype(np.float32), over, truncated & ~over

    monkeypatch.setattr(pick.Pick, "step", lengthening)
    assert evaluate.main(["run=run", "eval.episodes=10", "video=true", "film=best", "seed=4"]) == 0
    result = json.loads((tmp_path / "run/evaluations/30_seed=4_episodes=10.json").read_text())
    episode = int(np.argmax(result["returns"]))
    assert episode >= 2 and result["returns"] == result["lengths"], result["lengths"]
    frames = imageio.v3.imread(tmp_path / "run/videos/30_seed=4_episodes=10_film=best.mp4")
    assert len(frames) == result["lengths"][episode] + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=pik"], "unknown task 'pik'; did you mean 'pick'? (pick, relay)"),
        (["task=relay"], "the data has observations float32 [11] and actions float32 [4], and relay has"),
        (["env.history=3"], "the data has observations float32 [11] and actions float32 [4], and pick has"),
        (
            ["returns.high=0.5"],
            "the only reward in the data of pick, 1, lies outside the support of HLGauss",
        ),
        (["returns.low=0.1"], "agent: minimum_return (0) lies outside the support of HLGauss"),
        (["agent.bins=1"], "agent: bins must be at least 2, not 1"),
        (["agent.conservatism=soft"], "agent: conservatism must be one of unseen, softmax, not soft"),
        (["agent=cql"], "agent: CQL needs one discrete action at a time, not float32 [4]"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_line(
    options, message, recording, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    agent = [] if "agent=cql" in options else TRAIN
    base = agent or ["loss=hlgauss", "env=pick", "data=recording"]
    assert main([*base, f"data.path={recording}", *options, "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["noise=loud"],
            "noise=loud levels=0,0.1,0.2,0.35,0.5: noise must be one of closed_loop, mixed, replay",
        ),
        (["noise=mixed", "levels=2"], "noise=mixed levels=2: levels must be probabilities, not [2.0]"),
        (["noise=mixed", "levels=a"], "noise=mixed levels=a: could not convert string to float: 'a'"),
        (["levels=0.1"], "levels= needs noise=closed_loop, mixed or replay"),
        (["policy=random", "noise=mixed"], "noise= applies only to policy=scripted, not to policy=random"),
    ],
)
def test_a_noise_that_does_not_exist_is_one_line(options, message, tmp_path, capsys):
    policy = [] if "policy=random" in options else ["policy=scripted"]
    assert collect.main(["env=pick", "episodes=2", f"out={tmp_path}/a", *policy, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory, recording):
    """Two data sets with equal observations, for two tasks. Both are played as `pick`, the last part of their names."""
    root = tmp_path_factory.mktemp("tasks")
    for name in ("mild", "rough"):
        (root / name).mkdir()
        copy = root / name / "pick"
        shutil.copytree(recording, copy)
        manifest = Recording(copy).manifest
        layout = dataclasses.replace(manifest.layout, game=f"{name}/pick")
        dataclasses.replace(manifest, layout=layout).write(copy)
    np.savez(
        root / "vectors.npz", **{"rough/pick": np.ones(3), "mild/pick": -np.ones(3), "push": np.zeros(3)}
    )
    return root


SEVERAL = ["agent.games=2", "data.games=[mild/pick,rough/pick]"]


def test_tasks_share_a_network_with_a_vector_for_each_and_each_is_evaluated(
    two_tasks, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = [*TRAIN, *SEVERAL, f"data.path={two_tasks}", f"agent.embeddings={two_tasks}/vectors.npz"]
    assert main([*command, "run_dir=run"]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    played = {row["kind"]: len(row["returns"]) for row in rows if row["kind"].startswith("eval")}
    assert played == {"eval.mild/pick": 8, "eval.rough/pick": 8}
    # The checkpoint has the bits of the vectors, in the order of data.games.
    saved = [leaf.view(np.float32) for leaf in leaves(tmp_path / "run") if leaf.shape == (2, 3)]
    assert saved and all(np.array_equal(table, [[-1] * 3, [1] * 3]) for table in saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["returns.high=0.5"],
            "the only reward in the data of mild/pick, 1, lies outside the support",
        ),
        (["agent.embeddings=none.npz"], "agent.embeddings=none.npz: [Errno 2] No such file or directory"),
        (["data.games=[mild/pick,mildpick]"], "mildpick"),
    ],
)
def test_several_tasks_that_do_not_fit_together_are_one_line(
    options, message, two_tasks, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    vectors = f"agent.embeddings={two_tasks}/vectors.npz"
    assert main([*TRAIN, *SEVERAL, f"data.path={two_tasks}", vectors, *options, "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1, error


def test_a_task_without_a_vector_is_named(two_tasks):
    config = compose(
        [*TRAIN, "data.games=[mild/pick,rough/pik]", f"agent.embeddings={two_tasks}/vectors.npz"]
    )
    with pytest.raises(UserError, match=r"has no vector of rough/pik; did you mean 'rough/pick'\?"):
        build.agent(config, build.one_environment(config).spec)
