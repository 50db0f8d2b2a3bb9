"""Updates on a mesh of devices equal those of one device up to rounding, and send no more than they must."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rlcls.training import Placement, placement
from rlcls.training.placement import RULES

PROGRAM = Path(__file__).with_name("_on_a_mesh.py")
FORCED = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Asks `_on_a_mesh.py`, which has eight forced devices. One process answers for all tests."""
    folder = tmp_path_factory.mktemp("on_a_mesh")
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env=os.environ | {"XLA_FLAGS": FORCED, "PYTHONPATH": str(PROGRAM.parents[2])},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def facts(*arguments):
        if process.poll() is None:
            print(json.dumps(arguments), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, (folder / "errors.txt").read_text()
        return json.loads(answer)

    facts.folder = folder
    yield facts
    process.communicate()


@pytest.fixture(scope="module")
def updates(facts):
    return facts("updates")


def each_mesh(updates):
    return [(f"{agent} on {n}", mesh) for agent, meshes in updates.items() for n, mesh in meshes.items()]


def test_fifty_updates_on_any_number_of_devices_agree(updates):
    assert updates["dqn"].keys() == {"1", "2", "4", "8"}
    for name, mesh in each_mesh(updates):
        for what in ("parameters", "metrics", "priorities"):
            assert mesh[what] < 1e-5, (name, what)


def test_a_mesh_compiles_one_update_and_acts_on_one_device(updates):
    for name, mesh in each_mesh(updates):
        assert mesh["compilations"] == 1 and mesh["acting_devices"] == [1], name


def test_an_update_on_a_data_mesh_sends_its_gradients_and_metrics_in_one_all_reduce_and_nothing_else(updates):
    for agent in ("dqn", "cql", "bc", "qtransformer"):
        for devices, mesh in updates[agent].items():
            if devices != "1":
                assert mesh["collectives"] == {"all-reduce": 1}, (agent, devices)
                assert mesh["sent"] == mesh["averaged"], (agent, devices)


def test_a_mesh_of_one_device_gives_the_bits_of_no_mesh(facts, updates):
    assert updates["dqn"]["1"]["same_bits"]
    assert updates["dqn"]["1"]["collectives"] == {}
    plain = facts("plain")
    assert plain["same_bits"]
    for name, (one, two) in plain["diagnoses"].items():
        assert two == pytest.approx(one, rel=1e-4), name


def test_gradients_of_a_network_in_bfloat16_are_averaged_in_float32(facts):
    fact = facts("bfloat16")
    assert fact["computes_in_bfloat16"]
    (averaged,) = fact["all_reduces"]
    assert re.fullmatch(r"\d+xf32", averaged)


@pytest.mark.parametrize("kind", ["online", "offline"])
def test_a_loop_on_a_mesh_learns_the_same_compiles_once_and_resumes_to_the_same_bits(facts, kind):
    fact = facts("loop", kind)
    assert fact["updates"] > 50 and fact["compiled_after_the_warm_up"] == 0
    assert fact["same_bits"] and fact["mesh"] == {"data": 2, "model": 1}
    # The second run has two devices, and the third has four from its middle on.
    assert max(fact["distance"]) < 1e-5


@pytest.mark.parametrize("what", ("playing", "recorded"))
def test_lanes_without_vmap_on_two_devices_have_the_bits_of_one_device(what, facts):
    fact = facts("lanes", "alone", what)
    assert fact["same_bits"] and fact["resumed_same_bits"]
    assert fact["devices"] == ["cpu:0", "cpu:1"] and fact["acting_devices"] == ["cpu:0"]
    assert fact["compiled_after_the_first_line"] == 0


@pytest.mark.parametrize("what", ("playing", "recorded"))
def test_lanes_with_vmap_are_divided_over_the_devices_without_communication(what, facts):
    fact = facts("lanes", "vmap", what)
    assert fact["distance"] < 1e-3 and fact["resumed_same_bits"]
    assert fact["devices"] == ["cpu:0", "cpu:1"] and fact["acting_devices"] == ["cpu:0"]
    assert fact["collectives"] == {} and fact["compiled_after_the_first_line"] == 0


# The arrays that `RULES` divide, and the largest number of each collective in an update, on 1 x 2 devices and on 2 x 2.
# Layers of a transformer end in all-reduces of their tokens. SoftMoE gathers the parameters of its slots,
# which are small; a ResNet and Nature gather the channels of their pictures. Two rows of devices add one all-reduce of
# the gradients, and the Q-Transformer's metric of the batch's first transitions moves them to all devices.
DIVIDED = {
    "transformer": (
        r"backbone/layers/\d/(query|key|value|gate|up|output|down)/kernel",
        {"all-reduce": 11},
        {"all-reduce": 12},
    ),
    "qtransformer": (
        r"layers/\d/(query|key|value|gate|up|output|down)/kernel",
        {"all-reduce": 14},
        {"all-reduce": 15, "collective-permute": 3},
    ),
    "soft_moe": (
        r"backbone/layer/experts/(first|second)(_bias)?",
        {"all-reduce": 6, "all-gather": 4},
        {"all-reduce": 8, "all-gather": 4},
    ),
    "resnet": (
        r"backbone/(stem|blocks/\d/(layers/\d|shortcut))/(convolution/kernel|norm/(scale|bias))|"
        r"backbone/spatial|backbone/dense/kernel",
        {"all-reduce": 17, "all-gather": 32},
        {"all-reduce": 18, "all-gather": 43},
    ),
    "nature": (
        "backbone/dense/kernel",
        {"all-reduce": 2, "all-gather": 8},
        {"all-reduce": 3, "all-gather": 8},
    ),
}


@pytest.mark.parametrize("network", [pytest.param(name, marks=pytest.mark.slow) for name in DIVIDED])
def test_a_network_divided_over_devices_learns_the_same_and_sends_what_is_listed(facts, network):
    pattern, *expected = DIVIDED[network]
    fact = facts("model", network)
    for sizes, most in zip(("1x2", "2x2"), expected, strict=True):
        mesh = fact[sizes]
        assert mesh["same_beginning"] and mesh["compilations"] == 1 and mesh["acting_devices"] == [1]
        assert mesh["parameters"] < 1e-5 and mesh["loss"] < 1e-5
        assert mesh["collectives"].keys() == most.keys(), mesh["collectives"]
        assert all(count <= most[name] for name, count in mesh["collectives"].items()), mesh["collectives"]
        # The target network and both moments are divided like the parameters.
        first, *others = mesh["divided"].values()
        assert first and all(re.fullmatch(pattern, path) for path in first)
        assert all(other == first for other in others)
        if network == "soft_moe":
            assert mesh["largest"]["all-gather"] < 1000


# The options of commands, and a part of the one line that each prints.
PROBE = "env=probe game=probe/policy backbone=mlp steps=400 replay.min_size=200 device=cpu"
REFUSED = {
    "mesh.data=9": "error: mesh.data=9 and mesh.model=1 need 9 devices, and JAX finds 8 (cpu); XLA_FLAGS=",
    "mesh.data=0": "error: mesh.data must be at least 1, not 0",
    "mesh.data=3": "error: training: batch_size (32) must be a multiple of mesh.data (3)",
    "mesh.data=4 diagnostics.batch_size=6": "diagnostics_batch_size (6) must be a multiple of mesh.data (4)",
    "mesh.model=2": "error: mesh.model=2: no rule divides this network; give mesh.rules=[[PATTERN,[null,model]]]; the "
    "largest arrays are params/q_head/advantage/kernel [64, 102], params/backbone/layers/1/kernel [64, 64], ",
    "mesh.model=2 mesh.rules=[[kernell,[model]]]": "'kernell' matches no array that an earlier rule leaves",
    "mesh.model=2 mesh.rules=[[layers.*kernel,[null,model]],[1/kernel,[model]]]": "'1/kernel' matches no array that an",
    "mesh.model=2 mesh.rules=[[q_head,[null,model]]]": "error: mesh.rules: 'q_head' is for 2 dimensions, and params/",
    "mesh.model=4 mesh.rules=[[q_head.*kernel,[null,model]]]": "'q_head.*kernel' divides dimension 1 of params/",
    "mesh.model=2 mesh.rules=[['ker(nel',[model]]]": "mesh.rules: 'ker(nel' is not a regular expression (missing )",
    "mesh.rules=[[kernel,[data]]]": "'kernel': expected one dimension of model and null for others, not ['data']",
    "mesh.rules=[kernel]": "error: mesh.rules: expected [PATTERN,[null,model]], not 'kernel'",
    "mesh.rules=kernel": "error: mesh.rules: expected a list, not 'kernel'",
    "loop=compiled recipe=minatar mesh.model=2": "a lane is trained on one device: give mesh.model=1, not 2",
    "loop=compiled recipe=minatar seeds=3 training.vmap=true mesh.data=2": "mesh.data (2) must divide the 3 lanes",
}


def test_a_mesh_that_does_not_fit_is_one_line(facts):
    answers = facts("refused", *(f"{PROBE} {options}" for options in REFUSED))
    for (options, words), (code, error) in zip(REFUSED.items(), answers, strict=True):
        assert code == 2, (options, error)
        assert words in error.splitlines()[-1], (options, error)
        assert error.count("\n") == 1, (options, error)
    assert [path.name for path in facts.folder.iterdir()] == ["errors.txt"]


def test_a_mesh_larger_than_the_machine_names_what_it_needs():
    with pytest.raises(
        ValueError, match=r"mesh.data=500 and mesh.model=2 need 1000 devices, and JAX finds \d"
    ):
        Placement(500, 2)


@pytest.mark.parametrize(
    ("data", "model", "each", "message"),
    [
        (1, 2, 1, r"mesh.model=2 must divide the devices of each process \(1\)"),
        (2, 2, 3, r"mesh.model=2 must divide the devices of each process \(3\)"),
        (
            1,
            1,
            1,
            "mesh.data=1: each of 2 processes must have equally many .* along data, and they have 1, 0",
        ),
        (
            2,
            1,
            2,
            "mesh.data=2: each of 2 processes must have equally many .* along data, and they have 2, 0",
        ),
        (
            1,
            2,
            2,
            "mesh.data=1: each of 2 processes must have equally many .* along data, and they have 1, 0",
        ),
    ],
)
def test_processes_with_unequal_shares_of_a_mesh_are_refused(data, model, each, message, monkeypatch):
    devices = [SimpleNamespace(process_index=process) for process in range(2) for _ in range(each)]
    monkeypatch.setattr(placement, "_devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: each)
    with pytest.raises(ValueError, match=message):
        Placement(data, model)


def test_one_device_has_no_mesh():
    place = Placement()
    rows = np.arange(6.0).reshape(3, 2)
    assert place.sizes == {"data": 1, "model": 1}
    np.testing.assert_array_equal(place.local(place.batch(rows)), rows)
    assert place.acting(rows) is rows
    place.check_batch(batch_size=7)


@pytest.mark.parametrize("rules", [RULES, []])
def test_rules_have_no_effect_on_one_device(rules):
    state = Placement(rules=rules).init(lambda: {"kernel": jax.numpy.ones((3, 3))})
    np.testing.assert_array_equal(state["kernel"], np.ones((3, 3)))
