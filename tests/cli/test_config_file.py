"""A file of options is checked like the command line, which overrides it. Errors name the file."""

import pytest
from omegaconf import OmegaConf

from rlcls._errors import UserError
from rlcls.cli import config_file
from rlcls.cli.compose import compose
from rlcls.train import main

pytestmark = pytest.mark.untyped

MINE = """
loss: mse
seed: 7
agent: {learning_rate: 1e-4}
agent/schedule: constant
replay.n_step: 5
run_dir: my runs/it's
backbone: mlp
backbone.hidden: [32, 32]
device: null
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


def test_a_file_and_the_command_line_give_the_same_configuration(write):
    options = ["loss=mse", "seed=7", "agent.learning_rate=1e-4", "agent/schedule=constant", "replay.n_step=5"]
    options += ["run_dir=my runs/it's", "backbone=mlp", "backbone.hidden=[32,32]", "device=null"]
    assert compose(config_file.overrides(write(MINE), [])) == compose(options)


def test_the_command_line_overrides_the_file(write):
    run = compose(config_file.overrides(write(MINE), ["seed=1", "loss=huber", "backbone.hidden=[8]"]))
    assert (run.seed, run.choices.loss, run.backbone.hidden, run.replay.n_step) == (1, "huber", [8], 5)


EVALS = ["+evals.held_out._target_=rlcls.evaluation.HeldOutEvaluator", "+evals.held_out.every=9"]


@pytest.mark.parametrize("argv", [[], ["loss=c51", "recipe=paper"], ["backbone=impala", "seed=4"], EVALS])
def test_the_configuration_of_a_run_can_be_read_as_a_file(argv, tmp_path):
    run = compose(argv)
    OmegaConf.save(run, tmp_path / "config.yaml")
    assert compose(config_file.overrides(tmp_path / "config.yaml", [])) == run
    assert compose(config_file.overrides(tmp_path / "config.yaml", ["game=Breakout"])).env.game == "Breakout"


def test_the_settings_of_a_compiled_run_can_be_read_and_overridden(tmp_path):
    path = tmp_path / "config.yaml"
    lists = ["agent.learning_rate=[1e-4,1e-3]", "returns.high=[5,9]"]
    run = compose(["env=probe", "game=probe/policy", "loop=compiled", "recipe=minatar", *lists])
    OmegaConf.save(run, path)
    assert compose(config_file.overrides(path, [])) == run
    one_rate = compose(config_file.overrides(path, ["agent.learning_rate=0.5"]))
    assert one_rate.agent.learning_rate == 0.5
    assert one_rate.settings == [
        {"returns.high": 5.0, "loss.vmax": 5.0},
        {"returns.high": 9.0, "loss.vmax": 9.0},
    ]
    alone = ["agent.learning_rate=0.5", "returns.high=4", "loss=mse"]
    assert "settings" not in compose(config_file.overrides(path, alone))


@pytest.fixture(scope="module")
def config_of_a_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    OmegaConf.save(compose(["seed=3"]), path)
    return path


def test_a_choice_on_the_command_line_replaces_all_options_of_its_group_in_the_file(config_of_a_run):
    def composed(*argv):
        return compose(config_file.overrides(config_of_a_run, list(argv)))

    optimiser = composed("agent/optimizer=adamw")
    assert optimiser.agent.optimizer == compose(["agent/optimizer=adamw"]).agent.optimizer
    assert (optimiser.agent._target_, optimiser.seed) == ("rlcls.agents.DQN", 3)
    loss = composed("loss=mse")
    assert loss.loss == compose(["loss=mse"]).loss and loss.choices.loss == "mse"
    offline = composed("agent=cql", "loop=offline", "data=recording", "data.path=somewhere")
    assert offline.agent == compose(["agent=cql"]).agent and "replay" not in offline
    assert offline.training._target_ == "rlcls.training.Offline"


def test_a_recipe_together_with_the_configuration_of_a_run_is_refused(config_of_a_run):
    with pytest.raises(
        UserError, match=r"is the configuration of a run, .* leave recipe= or --config-file out"
    ):
        config_file.overrides(config_of_a_run, ["recipe=paper"])


MISTAKES = {
    "sede: 1": "{file}: unknown option 'sede'; did you mean 'seed'? (--help lists them all)",
    "loss: hlgaus": "{file}: unknown loss 'hlgaus'; did you mean 'hlgauss'?",
    "seed: abc": "{file}: seed: expected a whole number, not 'abc'",
    "replay: {n_stp: 3}": "{file}: unknown option 'replay.n_stp'; did you mean 'replay.n_step'?",
    "seed: [1, 2]": "{file}: seed: expected a whole number, not [1, 2]",
    "choices: text": "{file}: choices: expected groups and their names, not 'text'",
    "- seed": "{file}: expected options, written name: value",
    "seed: 1\nseed: 2": "cannot read {file}: while constructing a mapping",
    "seed: [": "cannot read {file}: while parsing a flow node",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(text, write, capsys):
    file = write(text)
    assert main(["--config-file", str(file), "--config"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: " + MISTAKES[text].format(file=file))


def test_a_mistake_on_the_command_line_does_not_name_the_file(write, capsys):
    assert main([f"--config-file={write('seed: 1')}", "sede=2", "--config"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown option 'sede'")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config-file"], "--config-file needs a file: --config-file mine.yaml"),
        (["--config-file=a", "--config-file=b"], "--config-file is given twice: a and b"),
    ],
)
def test_the_flag_names_one_file(argv, message):
    with pytest.raises(UserError, match=message):
        config_file.split(argv)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.yaml: No such file or directory"):
        config_file.overrides(tmp_path / "none.yaml", [])
