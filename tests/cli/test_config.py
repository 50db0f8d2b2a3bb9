"""The configuration of a command line: precedence, the paper's tables, identity and difference, sweeps, help."""

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlcls._errors import UserError
from rlcls.cli import build, compose, evaluators, run_config
from rlcls.cli.help import GROUPS, choices
from rlcls.runs.identity import difference, identity


def test_the_default_is_hlgauss_on_pong_with_recipe_fast():
    run = compose.compose([])
    assert dict(run.choices) == {
        "agent": "dqn",
        "agent/optimizer": "adam",
        "agent/schedule": "linear",
        "loss": "hlgauss",
        "backbone": "data_efficient",
        "env": "atari",
        "data": "none",
        "loop": "online",
        "eval": "episodes",
        "recipe": "fast",
    }
    assert (run.game, run.env.game, run.env.protocol) == ("Pong", "Pong", "dopamine")


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_every_recipe_has_all_values_for_every_agent_and_loss(recipe):
    for agent in choices("agent"):
        compose.compose([f"agent={agent}", f"recipe={recipe}"])
    for loss in choices("loss"):  # recipes have files for pairs of DQN and a loss
        compose.compose([f"loss={loss}", f"recipe={recipe}"])


# Options that have no default.
MISSING = {
    "agent/schedule=cosine": ["agent.schedule.decay_steps=9"],
    "agent/schedule=warmup": ["agent.schedule.warmup_steps=9"],
    "agent/schedule=warmup_cosine": ["agent.schedule.warmup_steps=9", "agent.schedule.decay_steps=9"],
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_composes(group):
    for choice in choices(group):
        missing = MISSING.get(f"{group}={choice}", [])
        assert compose.compose([f"{group}={choice}", *missing]).choices[group] == choice


@pytest.mark.parametrize(
    "argv", [*itertools.permutations(["loss=mse", "recipe=paper", "agent.optimizer.eps=1e-7"])]
)
def test_the_command_line_wins_over_the_recipe_in_any_order(argv):
    run = compose.compose(list(argv))
    assert run.agent.learning_rate == 6.25e-5  # from recipe/paper/dqn_mse.yaml
    assert run.agent.optimizer.eps == 1e-7
    assert run.training.lag == 0


def test_a_recipe_may_have_values_for_one_backbone_only():
    assert compose.compose(["recipe=fast"]).backbone.init_scale == 2.0
    assert compose.compose(["recipe=fast", "backbone.init_scale=1"]).backbone.init_scale == 1
    assert compose.compose(["recipe=paper"]).backbone.init_scale == pytest.approx(3**-0.5)
    assert "init_scale" not in compose.compose(["recipe=fast", "backbone=impala"]).backbone


@pytest.mark.parametrize(
    ("env", "backbone"),
    [
        ("atari", "nature"),
        ("gymnasium", "mlp"),
        ("minatar", "mlp"),
        ("pick", "states"),
        ("metaworld", "states"),
    ],
)
def test_the_default_backbone_fits_the_observations_whatever_the_recipe(env, backbone):
    agent = "qtransformer" if backbone == "states" else "dqn"
    for recipe in ("paper", "fast"):
        run = compose.compose([f"agent={agent}", f"env={env}", f"recipe={recipe}"])
        assert run.choices.backbone == (backbone if (env, recipe) != ("atari", "fast") else "data_efficient")
    command = [f"agent={agent}", f"env={env}", "recipe=paper", "backbone=impala"]
    assert compose.compose(command).choices.backbone == "impala"


@pytest.mark.parametrize("agent", ["qtransformer", "qtransformer_bc"])
def test_the_paper_recipe_of_the_q_transformer_has_256_bins_and_returns_of_0_and_1(agent):
    command = [f"agent={agent}", "env=pick", "recipe=paper", "data=recording"]
    run = compose.compose(command)
    assert (run.agent.bins, run.steps, run.data.gamma) == (256, 80_000, 0.98)
    assert run.loss.vmin < 0 and 1 < run.loss.vmax < 1.5
    assert compose.compose([*command, "agent.bins=11", "returns.high=2"]).loss.vmax == 2
    agent_of_run = build.agent(run, build.one_environment(run).spec)  # the parts fit together
    assert agent_of_run.spec.action.shape == (4,)


@pytest.mark.parametrize("loss", choices("loss"))
def test_the_supports_of_the_fast_recipe_fit_its_discount(loss):
    run = compose.compose(["recipe=fast", f"loss={loss}"])
    if "vmax" in run.loss:  # the paper's 10 by the share of its horizon
        edge = 10 * (1 - 0.99) / (1 - run.replay.gamma)
        assert (run.loss.vmin, run.loss.vmax) == pytest.approx((-edge, edge), rel=0.15)


# Farebrother et al. 2024, Tables B.1 to B.3, and Dopamine's values for what these tables leave out.
TABLE_B1 = {
    "steps": 50_000_000,
    "replay.gamma": 0.99,
    "replay.n_step": 1,
    "replay.min_size": 20_000,
    "replay.capacity": 1_000_000,
    "replay.prioritized": False,
    "replay.reward_clip": 1.0,
    "training.update_period": 4,
    "training.batch_size": 32,
    "training.lag": 0,
    "env.num_envs": 1,
    "env.protocol": "dopamine",
    "agent.target_period": 8_000 // 4,
    "agent.target_tau": 1.0,
    "agent.double": False,
    "agent.dueling": False,
    "exploration.epsilon_end": 0.01,
    "exploration.epsilon_decay": 250_000,
}
REGRESSION = {"agent.learning_rate": 6.25e-5, "agent.optimizer.eps": 1.5e-4}
TABLE_B2 = {"agent.learning_rate": 2.5e-4, "agent.optimizer.eps": 3.125e-4}
TABLE_B2 |= {"loss.num_bins": 51, "loss.vmin": -10.0, "loss.vmax": 10.0}
PAPER = {
    "mse": TABLE_B1 | REGRESSION,
    "two_hot": TABLE_B1 | TABLE_B2,
    "c51": TABLE_B1 | TABLE_B2,
    "hlgauss": TABLE_B1 | TABLE_B2 | {"loss.sigma_ratio": 0.75},
}


@pytest.mark.parametrize("loss", PAPER)
def test_the_paper_recipe_equals_the_papers_tables(loss):
    run = compose.compose(["recipe=paper", f"loss={loss}"])
    assert {option: OmegaConf.select(run, option) for option in PAPER[loss]} == PAPER[loss]


# Farebrother et al. 2024, section 4.1, and Dopamine's labs/offline_rl/jax/configs/jax_classy_cql.gin.
OFFLINE = {
    "steps": 100 * 62_500,
    "agent.learning_rate": 6.25e-5,
    "agent.optimizer.eps": 3.125e-4,
    "agent.target_period": 2_000,
    "agent.target_tau": 1.0,
    "agent.double": True,
    "agent.alpha": 0.1,
    "training.batch_size": 32,
    "eval.every": 62_500,
    "env.protocol": "dopamine",
}


@pytest.mark.parametrize("loss", ["mse", "hlgauss", "c51", "two_hot", "mse_softmax"])
def test_the_paper_recipe_of_cql_equals_the_authors_configuration_with_every_loss(loss):
    run = compose.compose(["agent=cql", "recipe=paper", f"loss={loss}"])
    assert {option: OmegaConf.select(run, option) for option in OFFLINE} == OFFLINE
    assert "num_bins" not in run.loss or (run.loss.num_bins, run.loss.vmin, run.loss.vmax) == (
        51,
        -10.0,
        10.0,
    )


@pytest.mark.parametrize("agent", ["cql", "bc"])
def test_an_offline_agent_chooses_its_loop_and_the_command_line_another(agent):
    run = compose.compose([f"agent={agent}"])
    assert run.choices.loop == "offline" and "replay" not in run
    assert run.training["_target_"] == "rlcls.training.Offline" and "lag" not in run.training
    assert compose.compose([f"agent={agent}", "loop=online"]).choices.loop == "online"


def test_dqn_learns_offline_by_the_recipe_of_its_loop():
    run = compose.compose(["loop=offline", "recipe=paper", "loss=hlgauss"])
    assert (run.agent.learning_rate, run.agent.double, run.steps) == (6.25e-5, True, 6_250_000)
    assert compose.compose(["recipe=paper"]).agent.double is False


def test_the_recipe_of_many_games_has_its_backbone_and_its_batch():
    run = compose.compose(["agent=cql", "recipe=scaled_ql", "agent.games=40"])
    assert (run.choices.backbone, run.training.batch_size, run.agent.games) == ("resnet101", 512, 40)
    assert (run.agent.learning_rate, run.agent.target_period) == (2e-4, 2_000)


def test_whole_numbers_may_be_written_as_powers_of_ten():
    steps = compose.compose(["steps=1e6"]).steps
    assert steps == 1_000_000 and isinstance(steps, int)


def test_a_path_may_contain_characters_that_the_grammar_reserves():
    assert compose.compose(["run_dir=/tmp/it's (a=b)"]).run_dir == "/tmp/it's (a=b)"


TYPED = [
    "2026_11_26",
    "1e5",
    "true",
    "Null",
    "~",
    "0x10",
    "007",
    "[a]",
    "{a: 1}",
    "a b",
    "a\\b\\",
    "1:2",
    "ü",
]


@pytest.mark.parametrize("option", ["run_dir", "game", "env.id", "logging.wandb"])
def test_a_path_or_a_name_is_taken_as_it_is_typed(option):
    assert [compose._parse(f"{option}={typed}").value() for typed in TYPED] == TYPED
    sweep = compose._parse(f"{option}={','.join(TYPED)}")
    texts = [f"{option}={text}" for text in sweep.sweep_string_iterator()]
    assert [compose._parse(text).value() for text in texts] == TYPED


def test_a_folder_named_like_a_date_or_a_truth_value_keeps_its_name():
    assert compose.compose(["run_dir=2026_11_26", "game=true"]).run_dir == "2026_11_26"
    assert compose.expand(["run_dir=true,1e5"]) == [["run_dir='true'"], ["run_dir='1e5'"]]
    assert compose.compose(["run_dir='1e5'"]).run_dir == "1e5"


def test_null_means_no_path_and_quotes_keep_their_meaning():
    assert compose.compose(["run_dir=null"]).run_dir is None
    assert compose.compose(["run_dir='a,b'"]).run_dir == "a,b"


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert run_config.run_dir(compose.compose(["run_dir=~/x"]), "Pong") == Path("/somewhere/x")
    with pytest.raises(UserError, match="run_dir=~no-such-user/x: Could not determine home directory"):
        run_config.run_dir(compose.compose(["run_dir=~no-such-user/x"]), "Pong")


def test_a_users_own_head_gets_only_the_options_that_the_user_gave():
    run = compose.compose(["loss._target_=package.Head", "+loss.bins=9", "loss.vmin=-3"])
    assert dict(run.loss) == {"_target_": "package.Head", "bins": 9, "vmin": -3.0}
    assert run.choices.loss == "Head"


def test_a_users_own_head_is_built():
    run = compose.compose(["loss._target_=fractions.Fraction", "+loss.numerator=3"])
    assert build.build(run, "loss").numerator == 3


def test_a_configuration_read_from_its_file_is_the_same(tmp_path):
    run = compose.compose(["recipe=paper", "backbone=mlp"])
    OmegaConf.save(run, tmp_path / "config.yaml")
    assert OmegaConf.load(tmp_path / "config.yaml") == run


OUTSIDE_IDENTITY = [
    "steps=7000",
    "run_dir=x",
    "device=cpu",
    "logging.every=3",
    "diagnostics.every=5",
    "checkpoint.every=9",
]


def test_options_about_place_and_duration_do_not_change_the_identity():
    run, other = compose.compose([]), compose.compose(OUTSIDE_IDENTITY)
    assert identity(run) == identity(other)
    assert difference(run, other) == []


@pytest.mark.parametrize(
    "option", ["seed=1", "game=Breakout", "loss.vmax=11", "env.num_envs=8", "eval.episodes=3"]
)
def test_every_other_option_changes_the_identity(option):
    assert identity(compose.compose([option])) != identity(compose.compose([]))


def test_the_same_number_is_the_same_configuration_however_it_is_written():
    one, other = compose.compose(["loss.vmax=10", "seed=1e0"]), compose.compose(["loss.vmax=1e1", "seed=1"])
    assert identity(one) == identity(other)


def test_a_difference_names_the_option_and_both_values():
    there, here = (
        compose.compose(["agent.learning_rate=2.5e-4"]),
        compose.compose(["agent.learning_rate=1e-4"]),
    )
    assert difference(there, here) == ["agent.learning_rate is 0.00025 there and 0.0001 here"]
    there, here = compose.compose(["loss=huber"]), compose.compose(["loss=mse"])
    assert difference(there, here) == [
        "loss.delta is 1.0 there and absent here",
        "loss.name is huber there and mse here",
    ]


def test_a_sweep_is_every_combination():
    assert compose.expand(["loss=mse,hlgauss", "game=Breakout", "seed=range(2)"]) == [
        ["loss=mse", "game=Breakout", "seed=0"],
        ["loss=mse", "game=Breakout", "seed=1"],
        ["loss=hlgauss", "game=Breakout", "seed=0"],
        ["loss=hlgauss", "game=Breakout", "seed=1"],
    ]


def test_flags_are_separated_from_options():
    assert compose.split_flags(["-m", "seed=1,2", "--config"]) == ({"--multirun", "--config"}, ["seed=1,2"])


def test_help_shows_every_choice_and_every_option_with_its_meaning():
    text = compose.help_text()
    for group in GROUPS:
        assert f"{group}= (default " in text
        for choice in choices(group):
            assert f"\n  {choice} " in text
    run = compose.compose([])
    shown = text.partition("options, with")[2]
    for section in (
        "replay",
        "exploration",
        "training",
        "eval",
        "diagnostics",
        "mesh",
        "checkpoint",
        "logging",
    ):
        for option in (option for option in run[section] if not option.startswith("_")):
            assert f"\n  {section}.{option}=" in shown
    rows = [line for line in shown.splitlines() if line.startswith("  ")]
    assert all(len(line.split(maxsplit=1)) == 2 for line in rows)
    assert "\n  +evals.NAME._target_=CLASS " in shown
    assert max(map(len, text.splitlines())) <= 120


def test_options_that_another_choice_does_not_take_are_dropped():
    """The recipe has an eps for Adam, and a schedule of the learning rate."""
    run = compose.compose(["agent/optimizer=sgd", "agent/schedule=constant"])
    assert dict(run.agent.optimizer) == {"_target_": "optax.sgd", "_partial_": True, "momentum": None}
    assert "schedule" not in run.agent and "data" not in run


def test_a_schedule_changes_the_rate_of_the_optimiser():
    run = compose.compose(
        ["agent/schedule=warmup_cosine", "agent.schedule.warmup_steps=10", "agent.schedule.decay_steps=20"]
    )
    schedule = build.build(run, "agent.schedule")
    assert [float(schedule(update)) for update in (0, 5, 10, 20)] == [0.0, 0.5, 1.0, 0.0]


def test_a_further_evaluator_has_a_name_and_a_period():
    run = compose.compose(["+evals.mine._target_=package.Mine", "+evals.mine.every=7", "eval.every=0"])
    assert dict(run.evals.mine) == {"_target_": "package.Mine", "every": 7} and run.eval.every == 0


class Refusing:
    """An evaluator that cannot be made."""

    def __init__(self, agent, env, *, seed):
        raise UserError("the data lacks returns")


@pytest.mark.untyped
def test_the_name_of_an_evaluator_does_not_change_the_words_of_its_error():
    run = compose.compose(
        [f"+evals.data._target_={__name__}.Refusing", "+evals.data.every=7", "eval.every=0"]
    )
    with pytest.raises(UserError, match="^the data lacks returns$"):
        evaluators._evaluator(run, "evals.data", None, None, None)


def test_only_the_configuration_of_an_environment_with_games_has_a_game():
    assert "game" not in compose.compose(["env=gymnasium"])
    assert (
        compose.compose(["env=gymnasium", "agent=cql", "data=dqn_replay", "data.path=x", "game=Qbert"]).game
        == "Qbert"
    )
    assert compose.compose(["env=probe", "game=probe/value"]).game == "probe/value"


@pytest.mark.parametrize("address", ["[::1]:29417", "10.0.0.1:29417", "node03:29417"])
def test_the_address_of_process_0_is_taken_as_it_is_written(address):
    assert compose.compose([f"distributed.coordinator={address}"]).distributed.coordinator == address
