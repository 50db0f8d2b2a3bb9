"""A mistake on the command line is one line that names a valid alternative."""

import re

import pytest

from rlcls._errors import UserError, nearest
from rlcls.cli import build, compose, evaluators

pytestmark = pytest.mark.untyped

LOSSES = "(bce, c51, hlgauss, huber, mse, mse_softmax, one_hot, quantile, two_hot)"
RECIPES = "(fast, manipulation, minatar, paper, scaled_ql, vector)"
BELONG = "belongs to loop=compiled, loop=online"
MISTAKES = {
    "loss=hlgaus": f"unknown loss 'hlgaus'; did you mean 'hlgauss'? {LOSSES}",
    "recipe=papr": f"unknown recipe 'papr'; did you mean 'paper'? {RECIPES}",
    "recipe=paper/dqn_mse": f"unknown recipe 'paper/dqn_mse' {RECIPES}",
    "loss=null": f"unknown loss 'null' {LOSSES}",
    "loss=none": f"unknown loss 'none' {LOSSES}",
    "loss=[mse,c51]": f"unknown loss '[mse,c51]' {LOSSES}",
    "~loss": f"'~loss': a group is chosen with loss=name {LOSSES}",
    "foo": "cannot read 'foo'; options are written name=value, such as seed=1",
    "=3": "cannot read '=3'; options are written name=value, such as seed=1",
    "sede=1": "unknown option 'sede'; did you mean 'seed'? (--help lists them all)",
    "gamma=1": "unknown option 'gamma'; did you mean 'replay.gamma'? (--help lists them all)",
    "eval.evry=1": "unknown option 'eval.evry' of eval=episodes; did you mean 'eval.every'?"
    " (eval.episodes, eval.epsilon, eval.every)",
    "diagnostics.evry=1": "unknown option 'diagnostics.evry'; did you mean 'diagnostics.every'?"
    " (diagnostics.every, diagnostics.batch_size)",
    "diagnostics.every=-1": "diagnostics.every: expected at least 0, not -1",
    "diagnostics.batch_size=0": "diagnostics.batch_size: expected at least 1, not 0",
    "diagnostics.every=often": "diagnostics.every: expected a whole number, not 'often'",
    "loss=mse loss.num_bins=5": "unknown option 'loss.num_bins' of loss=mse; it belongs to loss=c51, loss=hlgauss, "
    "loss=mse_softmax, loss=one_hot, loss=two_hot",
    "env.id=CartPole-v1": "unknown option 'env.id' of env=atari; it belongs to env=gymnasium, env=gymnax",
    "env=gymnasium game=Pong": "game: env=gymnasium does not take it; env.id=CartPole-v1 names the environment",
    "hydra.run.dir=x": "unknown option 'hydra.run.dir'; did you mean 'run_dir'? (--help lists them all)",
    "eval=3": "unknown eval '3' (episodes, held_out)",
    "checkpoint=3": "'checkpoint' is a group of options, set one by one "
    "(checkpoint.every, checkpoint.keep, checkpoint.keep_every, checkpoint.keep_best)",
    "resume=weigths": "unknown resume 'weigths'; did you mean 'weights'? (restart, weights)",
    "+foo=1": "nothing would read 'foo'; options can be added to agent, loss, backbone, "
    "env, data, training, replay, exploration, eval",
    "~seed": "seed: cannot be left out",
    "seed=abc": "seed: expected a whole number, not 'abc'",
    "seed=1.5": "seed: expected a whole number, not 1.5",
    "seed=true": "seed: expected a whole number, not true",
    "seed=null": "seed: expected a whole number, not null",
    "seed=-1": "seed: expected between 0 and 4294967295, not -1",
    "seed=4294967296": "seed: expected between 0 and 4294967295, not 4294967296",
    "seed=1,2": "'seed=1,2' asks for several runs; add --multirun to make them",
    "steps=-1": "steps: expected between 1 and 2147483647, not -1",
    "steps=1000000000000000000": "steps: expected between 1 and 2147483647, not 1000000000000000000",
    "env.num_envs=3000": "training: replay.min_size (5000) must be at least 12000: 3-step returns of 3000 "
    "environments at a lag of 1 are not complete before; at most 1250 environments would do",
    "lr=1": "unknown option 'lr'; did you mean 'agent.learning_rate'? (--help lists them all)",
    "+backbone.foo=1 backbone=mlp": "backbone.foo: rlcls.networks.MLP takes no 'foo' (dtype, hidden)",
    "loss._target_=fractions.Fraction +loss.foo=1": "loss.foo: fractions.Fraction takes no 'foo' "
    "(denominator, numerator)",
    "agent.learning_rate=${nope}": "agent.learning_rate: Interpolation key 'nope' not found",
    "agent=cql replay.gamma=0.9": f"replay.gamma {BELONG}; with loop=offline it is data.gamma",
    "agent=dqn loop=offline replay.n_step=3": f"replay.n_step {BELONG}; with loop=offline it is data.n_step",
    "agent=cql +replay.gamma=0.9": f"replay.gamma {BELONG}; with loop=offline it is data.gamma",
    "agent=cql replay.reward_clip=1": f"replay.reward_clip {BELONG}; with loop=offline it is "
    "data.reward_clip",
    "agent=cql replay.capacity=10": f"replay.capacity {BELONG}, not to loop=offline",
    "agent=cql exploration.epsilon_end=0.9": f"exploration.epsilon_end {BELONG}, not to loop=offline",
    "agent=cql replay._target_=package.Replay": f"replay._target_ {BELONG}, not to loop=offline",
    "+replay.gamma=0.9": "replay.gamma exists; write it without +",
    "+seed=1": "seed exists; write it without +",
    "+replay={gamma:0.9}": "'replay' is a group of options, set one by one (replay.capacity, replay.min_size, "
    "replay.n_step, replay.gamma, replay.prioritized, replay.priority_exponent, replay.importance_exponent, "
    "replay.reward_clip, replay.reward_noise)",
    "agent.optimizer.b1=1.5": "agent.optimizer.b1: expected at least 0 and below 1, not 1.5",
    "agent.optimizer.b2=1": "agent.optimizer.b2: expected at least 0 and below 1, not 1.0",
    "agent.optimizer.eps=-1": "agent.optimizer.eps: expected at least 0, not -1.0",
    "+agent.optimizer.eps_root=-1": "agent.optimizer.eps_root: expected at least 0, not -1",
    "agent/optimizer=adamw agent.optimizer.weight_decay=-0.1": "agent.optimizer.weight_decay: expected at least 0, "
    "not -0.1",
    "agent/optimizer=rmsprop agent.optimizer.decay=-0.1": "agent.optimizer.decay: expected at least 0 and below 1, "
    "not -0.1",
    "agent/optimizer=sgd agent.optimizer.momentum=1": "agent.optimizer.momentum: expected at least 0 and below 1, "
    "not 1.0",
    "env=gymnasium env.id=": "env.id: expected a name, not ''",
    "agnet=dqn": "unknown option 'agnet'; did you mean 'agent'? (--help lists them all)",
    "replay.min_size=0": "training: replay.min_size (0) must be at least 64: 3-step returns of 16 environments at a "
    "lag of 1 are not complete before",
    "training.lag=10000": "training: replay.min_size (5000) must be at least 160048: 3-step returns of 16 "
    "environments at a lag of 10000 are not complete before",
    "agent.learning_rate=nan": "agent.learning_rate: expected a number, not nan",
    "agent/optimizer=adma": "unknown agent/optimizer 'adma'; did you mean 'adam'? (adam, adamw, rmsprop, sgd)",
    "agent.adam_eps=1": "unknown option 'agent.adam_eps' of agent=dqn; did you mean 'agent.double'? (agent.double, "
    "agent.dueling, agent.learning_rate, agent.max_gradient_norm, agent.target_period, agent.target_tau)",
    "agent.optimizer.epz=1": "unknown option 'agent.optimizer.epz' of agent=dqn; did you mean 'agent.optimizer.eps'? "
    "(agent.optimizer.b1, agent.optimizer.b2, agent.optimizer.eps)",
    "agent/schedule=cosine": "agent.schedule.decay_steps: give a value, recipe=fast has none here",
    "+evals.mine._target_=package.Mine": "evals.mine: an evaluator needs evals.mine._target_ and evals.mine.every",
    "device=gup": "unknown device 'gup'; did you mean 'gpu'? (cpu, gpu, tpu)",
    "run_dir=": "run_dir: expected a path, not ''",
    "game=${nope}": "game: Interpolation key 'nope' not found",
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named_in_one_line(said):
    with pytest.raises(UserError) as caught:
        compose.compose(said.split())
    assert str(caught.value) == MISTAKES[said]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        (
            "--hepl",
            "unknown flag '--hepl'; did you mean '--help'? (--config, --config-file, --help, --multirun)",
        ),
        ("--seed=3", "options are written without dashes: seed=3"),
        (
            "--game",
            "unknown flag '--game'; options are written without dashes, as in game=value (--config, --config-file, "
            "--help, --multirun)",
        ),
    ],
)
def test_an_unknown_flag_is_named(flag, line):
    with pytest.raises(UserError) as caught:
        compose.split_flags([flag])
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package.Head", "No module named 'no_such_package'"),
        ("collections.NoSuchHead", "module 'collections' has no attribute 'NoSuchHead'"),
        ("nothing", "No module named 'nothing'"),
    ],
)
def test_a_class_that_cannot_be_imported_is_named_with_its_option(target, reason):
    with pytest.raises(UserError) as caught:
        build.build(compose.compose([f"loss._target_={target}"]), "loss")
    assert str(caught.value) == f"loss._target_={target}: {reason}"


def test_a_sweep_that_is_too_large_or_shares_a_folder_is_refused_before_its_first_run():
    with pytest.raises(UserError) as caught:
        compose.expand(["seed=range(1e9)"])
    assert str(caught.value) == "'seed=range(1e9)' makes more than 1000 runs; a sweep has at most 1000"
    with pytest.raises(UserError, match="makes more than 1000 runs"):
        compose.expand(["seed=range(500)", "loss=mse,huber,c51"])
    with pytest.raises(UserError) as caught:
        compose.expand(["seed=0,1", "run_dir=mine"])
    assert str(caught.value) == (
        "run_dir=mine would hold several runs of the sweep; leave run_dir out, and each run has a folder of its own"
    )


# Options that the constructor that takes them checks.
IMPOSSIBLE = {
    "env.num_envs=0": "env.num_envs must be at least 1, not 0",
    "loss.vmin=20": "loss: support: vmin (20.0) must be below vmax (3.0)",
    "loss.num_bins=1": "loss: ",
    "loss.num_bins=1000000000": "loss: support: num_bins must be at most 1048576, not 1000000000",
    "loss=quantile loss.num_quantiles=1000000000": "loss: quantile: num_quantiles must be at most 1048576, not",
    "agent.learning_rate=0": "agent: learning_rate must be above 0, not 0.0",
    "agent.target_tau=2": "agent: target_tau must be above 0 and at most 1, not 2.0",
    "backbone=mlp backbone.hidden=[0]": "backbone: hidden must be integers of at least 1, not (0,)",
    "backbone.hidden=[]": "backbone: hidden must be integers of at least 1, not ()",
    "backbone.dtype=int32": "backbone: dtype must be float32 or bfloat16, not 'int32'",
    "replay.capacity=100": "replay: capacity (100) must be at least min_size (5000)",
    "replay.gamma=1.5": "replay: gamma must be between 0 and 1, not 1.5",
    "training.lag=-1": "training: lag must be at least 0, not -1",
    "exploration.epsilon_end=2": "exploration: epsilon_end must be between 0 and 1, not 2.0",
    "eval.episodes=0": "eval: episodes must be at least 1, not 0",
    "eval.epsilon=-1": "eval: epsilon must be between 0 and 1, not -1.0",
    "agent.optimizer.b1=0.5 agent/optimizer=sgd": "unknown option 'agent.optimizer.b1'",
}


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_a_value_that_a_constructor_refuses_is_one_line(options):
    with pytest.raises(UserError) as caught:
        config = compose.compose(["env=probe", "game=probe/policy", "backbone=mlp", *options.split()])
        env = build.environment(config)
        agent = build.agent(config, env.spec)
        loop = build.loop(config, agent, env)
        evaluators.make(config, loop, agent, {"": env})
    assert str(caught.value).startswith(IMPOSSIBLE[options])
    assert "\n" not in str(caught.value)


def test_the_error_of_a_target_that_hydra_blocks_is_a_whole_sentence():
    with pytest.raises(UserError) as caught:
        build.build(compose.compose(["agent._target_=os.system"]), "agent")
    assert re.fullmatch(
        r"agent: Target 'os\.system' is blocklisted because it allows .* family", str(caught.value)
    )


def test_a_user_error_inside_a_built_object_keeps_its_words():
    with pytest.raises(UserError, match=r"^unknown game 'Pnog'; did you mean 'Pong'"):
        build.build(compose.compose(["game=Pnog"]), "env")


def test_without_a_similar_name_there_is_no_suggestion():
    assert nearest("zzz", ["mse", "hlgauss"]) == " (hlgauss, mse)"
    assert nearest("MSE", ["mse", "hlgauss"]) == "; did you mean 'mse'? (hlgauss, mse)"
