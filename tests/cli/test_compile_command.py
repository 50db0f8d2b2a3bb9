"""`python -m rlcls.compile` says what an update needs on devices that this machine does not have."""

import importlib.util
import json

import pytest

from rlcls import compile as command
from rlcls._errors import UserError
from rlcls.chips import target
from rlcls.cli import run_config
from rlcls.cli.compose import compose

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.mark.aot
@needs_libtpu
def test_an_update_for_four_tpus_sends_its_parameters_once(tmp_path, capsys):
    options = [
        "env=probe",
        "game=probe/policy",
        "backbone=mlp",
        "training.batch_size=32",
        f"out={tmp_path}/report.json",
    ]
    assert command.main(["target=v5e:2x2", *options]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["devices"] == 4 and report["mesh"] == {"data": 4, "model": 1} and report["fits"]
    (kind,) = report["collectives"]
    metrics = 4
    numbers = report["collectives"][kind]["bytes"] / 4
    assert kind == "all-reduce" and report["parameters"] <= numbers <= report["parameters"] + metrics
    assert "all-reduce" in capsys.readouterr().out


@pytest.mark.aot
@needs_libtpu
def test_a_target_that_the_compiler_does_not_know_is_one_line(capsys):
    assert command.main(["target=v5e:3x5", "game=Pong"]) == 2
    assert "target=v5e:3x5: the compiler knows no such devices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["game=Pong"], "say what to compile for, such as target=v5e:2x2; --help says more"),
        (["target=v5f:2x2"], "target=v5f:2x2: unknown chip 'v5f'; did you mean 'v5p'?"),
        (["target=v5e"], "target=v5e: expected such as v5e:2x2, the shape of the slice"),
        (["target=h100:0"], "target=h100:0: expected such as h100:8, the number of GPUs"),
        (["target=v5e:2x2", "loss=hlgaus"], "unknown loss 'hlgaus'; did you mean 'hlgauss'?"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_collectives_are_counted_with_the_bytes_of_their_results():
    text = """
      %all-reduce.1 = f32[8,2]{1,0} all-reduce(%x), replica_groups={}
      %start = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%y), dimensions={0}
      %done = bf16[16]{0} all-gather-done(%start)
      ROOT %r = (f32[]{}, s32[3]{0}) all-reduce(%a, %b)
    """
    assert command.collectives(text) == {
        "all-reduce": command.Collective(2, 64 + 4 + 12),
        "all-gather": command.Collective(1, 20),
    }


def test_each_process_has_its_share_of_environments_replay_and_data():
    config = compose(
        ["game=Pong", "recipe=fast", "env.num_envs=8", "replay.capacity=1000", "replay.min_size=100"]
    )
    own = run_config.share(config, 1, 2)
    assert (own.env.num_envs, own.replay.capacity, own.replay.min_size) == (4, 500, 50)
    assert own.training.batch_size == config.training.batch_size and config.env.num_envs == 8
    offline = compose(["agent=cql", "game=Pong", "data=recording", "data.path=x"])
    own = run_config.share(offline, 1, 2)
    assert (own.data.host, own.data.hosts) == (1, 2) and own.env == offline.env
    assert run_config.share(config, 0, 1) is config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["game=Pong", "env.num_envs=7"], "env.num_envs=7 cannot be divided among 2 processes"),
        (
            ["game=Pong", "env.num_envs=8", "training.batch_size=33"],
            "training.batch_size=33 cannot be divided",
        ),
        (
            ["loop=compiled", "env=probe", "game=probe/policy", "backbone=mlp"],
            "loop=compiled trains in one process",
        ),
    ],
)
def test_what_two_processes_cannot_share_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        run_config.share(compose(options), 0, 2)


def test_a_target_names_a_chip_and_a_shape():
    for name in ("", "cpu:2", "v6e:"):
        with pytest.raises(UserError, match=f"target={name}: "):
            target(name)
