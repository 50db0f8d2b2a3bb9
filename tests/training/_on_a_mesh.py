"""A program that measures facts about meshes. JAX takes the number of devices when it starts.

It reads lines of JSON. Each names one of its functions and the arguments, and it answers with a line of JSON.

echo '["updates"]' | XLA_FLAGS=--xla_force_host_platform_device_count=8 python _on_a_mesh.py
"""

import contextlib
import functools
import hashlib
import io
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import optax

from rlcls import heads, networks
from rlcls.agents import BC, CQL, DQN, QTransformer
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.datasets import BEGINS, CONTINUES, Layout, Rows, Transitions, Writer
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.envs.probe import PROBES
from rlcls.replay import ArrayReplay
from rlcls.runs import Checkpoints, checkpoint
from rlcls.spec import Spec
from rlcls.train import main as train
from rlcls.training import Compiled, Learner, LinearDecay, Offline, OfflineProgram, Placement, Program, xla
from rlcls.transition import Transition

BATCH = 64
VECTOR = jax.ShapeDtypeStruct((16,), np.float32)
PICTURE = jax.ShapeDtypeStruct((2, 36, 36), np.uint8)
TOKENS = jax.ShapeDtypeStruct((4, 8), np.float32)
ONE, SEVERAL = ((), 6), ((3,), 5)  # shape of an action, and its values
HEAD = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)
MLP = functools.partial(networks.MLP, hidden=(64, 64))


class Whole(DQN):
    """An agent whose update takes the whole batch."""

    def update(self, state, batch, key):
        return super().update(state, batch, key)


def agent(kind=DQN, backbone=MLP, observation=VECTOR, actions=ONE, **options):
    shape, count = actions
    spec = Spec(observation, jax.ShapeDtypeStruct(shape, np.int32), count, None)
    # With Adam's usual epsilon a gradient that is only rounding errors moves a parameter as far as any other.
    optimizer = functools.partial(optax.adam, eps=1e-3)
    return kind(
        spec, backbone, HEAD, **{"learning_rate": 1e-3, "target_period": 5, "optimizer": optimizer} | options
    )


def batch(number, observation=VECTOR, actions=ONE, size=BATCH):
    random, (shape, count) = np.random.default_rng(number), actions

    def observations():
        if observation.dtype == np.uint8:
            return random.integers(0, 256, (size, *observation.shape)).astype(np.uint8)
        return random.standard_normal((size, *observation.shape)).astype(np.float32)

    return Transition(
        observations(),
        random.integers(0, count, (size, *shape)).astype(np.int32),
        random.standard_normal(size).astype(np.float32),
        np.full(size, 0.99, np.float32),
        observations(),
        random.uniform(0.2, 1, size).astype(np.float32),
        return_to_go=random.standard_normal(size).astype(np.float32),
    )


def learner(of, placement=None):
    return Learner(of, jax.random.key(0), jax.random.key(1), placement=placement)


def learn(made, updates, diagnoses=False, **shapes):
    """The state after `updates` updates, the last result, and a diagnosis that preceded the third update."""
    seen = {}
    for number in range(updates):
        held_out = batch(1000, **shapes) if diagnoses and number == 2 else None
        rows = batch(number, **shapes)
        made.submit(rows, (np.arange(len(rows.reward)),), held_out)
        (result,) = made.end_round()
        seen = result.diagnostics or seen
    made.close()
    return jax.tree.map(np.array, made._state), result, seen


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max((float(np.abs(x - y).max()) for x, y in pairs), default=0.0)


def digest(tree):
    sums = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sums.update(np.ascontiguousarray(leaf).tobytes())
    return sums.hexdigest()


def lowered(made, **shapes):
    place = made.placement
    return made.update.lower(made._state, place.batch(batch(0, **shapes)), place.everywhere(0))


def collectives(text):
    """How often each collective is in a compiled program, and the largest number of elements of one array in it."""
    counts, largest = Counter(), Counter()
    pattern = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    for shapes, name in re.findall(pattern, text):
        arrays = re.findall(r"f32\[([\d,]*)\]", shapes)
        if not arrays:  # the flag that says whether parameters are finite
            continue
        counts[name] += 1
        sizes = [int(np.prod([int(side) for side in each.split(",") if side])) for each in arrays]
        largest[name] = max(largest[name], *sizes)
    return dict(counts), dict(largest)


def updates():
    facts = {}
    small = {"layers": 1, "width": 16, "heads": 2}
    kinds = {
        "dqn": (agent(double=True), {}, (1, 2, 4, 8)),
        "cql": (agent(CQL), {}, (2,)),
        "bc": (agent(BC), {}, (2,)),
        "qtransformer": (agent(QTransformer, actions=SEVERAL, **small), {"actions": SEVERAL}, (8,)),
        "without_mean": (agent(Whole), {}, (4,)),
    }
    for name, (of, shapes, meshes) in kinds.items():
        first, result, _ = learn(learner(of), 50, **shapes)
        fact = facts[name] = {}
        for devices in meshes:
            made = learner(of, Placement(data=devices))
            state, other, _ = learn(made, 50, **shapes)
            # The metric q_unseen is computed from the first transitions of each device.
            names = result.metrics.keys() - {"q_unseen"}
            counts, sizes = collectives(lowered(made, **shapes).compile().as_text())
            fact[devices] = {
                "parameters": distance(state.params, first.params),
                "metrics": max(abs(result.metrics[each] - other.metrics[each]) for each in names),
                "priorities": distance(other.priorities, result.priorities),
                "same_bits": digest((state, other.priorities)) == digest((first, result.priorities)),
                "compilations": made.update._cache_size(),
                "collectives": counts,
                "sent": sizes.get("all-reduce"),
                "averaged": sum(leaf.size for leaf in jax.tree.leaves(state.params)) + len(other.metrics),
                "acting_devices": sorted(
                    {leaf.sharding.num_devices for leaf in jax.tree.leaves(made.acting)}
                ),
            }
    return facts


def plain():
    """Compares updates that `jax.jit` compiles with those of a mesh of one device, and diagnoses on one and two."""
    of, key = agent(double=True), jax.random.key(1)
    state = jax.jit(of.init)(jax.random.key(0))
    update = xla.jit(
        lambda state, batch, number: of.update(state, batch, jax.random.fold_in(key, number)),
        donate_argnums=0,
    )
    for number in range(50):
        state, info = update(state, batch(number), number)
    one, result, seen = learn(learner(of, Placement(1, 1)), 50, diagnoses=True)
    _, _, on_two = learn(learner(of, Placement(2)), 3, diagnoses=True)
    return {
        "same_bits": digest((state, info.priorities)) == digest((one, result.priorities)),
        "diagnoses": {name: [seen[name], on_two[name]] for name in seen},
    }


def bfloat16():
    backbone = functools.partial(networks.Transformer, layers=1, width=16, heads=2, dtype="bfloat16")
    made = learner(agent(backbone=backbone, observation=TOKENS), Placement(data=2))
    text = lowered(made, observation=TOKENS).as_text()
    reduced = re.findall(r"\"?stablehlo\.all_reduce\"?.*?\(tensor<([^>]*)>\)", text, flags=re.S)
    return {"all_reduces": reduced, "computes_in_bfloat16": "xbf16>" in text}


# The last value is the batch size. It is small for convolutions, which are slow if they are compiled unoptimised.
NETWORKS = {
    "transformer": (
        DQN,
        functools.partial(networks.Transformer, layers=2, width=32, heads=4),
        PICTURE,
        ONE,
        8,
    ),
    "soft_moe": (
        DQN,
        functools.partial(networks.IMPALATokens, num_experts=4, hidden=32),
        PICTURE,
        ONE,
        BATCH,
    ),
    "resnet": (DQN, functools.partial(networks.ResNet, width=8), PICTURE, ONE, 8),
    "qtransformer": (QTransformer, MLP, VECTOR, SEVERAL, BATCH),
    "nature": (DQN, networks.Nature, PICTURE, ONE, 8),
}


def model(name):
    kind, backbone, observation, actions, size = NETWORKS[name]
    of = agent(kind, backbone, observation, actions)
    shapes = {"observation": observation, "actions": actions, "size": size}
    alone = learner(of)
    begun = digest(jax.tree.map(np.array, alone._state))
    first, result, _ = learn(alone, 5, **shapes)
    facts = {}
    for sizes in ((1, 2), (2, 2)):
        made = learner(of, Placement(*sizes))
        same = digest(jax.tree.map(np.array, made._state)) == begun
        state, other, _ = learn(made, 5, **shapes)
        counts, largest = collectives(lowered(made, **shapes).compile().as_text())
        named = jax.tree_util.tree_leaves_with_path(made._state)
        divided = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, leaf in named
            if not leaf.is_fully_replicated
        ]
        facts[f"{sizes[0]}x{sizes[1]}"] = {
            "same_beginning": same,
            "parameters": distance(state.params, first.params),
            "loss": abs(other.metrics["loss"] - result.metrics["loss"]),
            "compilations": made.update._cache_size(),
            "collectives": counts,
            "largest": largest,
            "largest_parameter": max(leaf.size for leaf in jax.tree.leaves(state.params)),
            "divided": {
                part: sorted(path.removeprefix(part) for path in divided if path.startswith(part))
                for part in ("params/", "target_params/", "opt_state/1/0/mu/", "opt_state/1/0/nu/")
            },
            "acting_devices": sorted({leaf.sharding.num_devices for leaf in jax.tree.leaves(made.acting)}),
        }
    return facts


ONLINE = [
    "env=probe",
    "game=probe/policy",
    "loss=hlgauss",
    "backbone=mlp",
    "backbone.hidden=[32]",
    "env.num_envs=4",
    "replay.capacity=2000",
    "replay.min_size=100",
    "replay.prioritized=true",
    "replay.n_step=2",
    "training.batch_size=16",
    "training.update_period=4",
    "diagnostics.every=10",
    "diagnostics.batch_size=16",
]


class Compilations:
    """Counts what XLA compiles."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, name, seconds, **_):
        self.count += name == "/jax/core/compile/backend_compile_duration"


class Recorded:
    spec = agent().spec

    def sample(self, size, seed, number):
        return batch(number, size=size), (np.arange(size),)


def online(*mesh):
    config = compose([*ONLINE, *mesh])
    env = build.environment(config)
    return build.loop(config, build.agent(config, env.spec), env)


def offline(*mesh):
    data = int(mesh[0].rpartition("=")[2]) if mesh else 1
    return Offline(agent(CQL), Recorded(), batch_size=BATCH, log_every=50, placement=Placement(data))


def everything(loop):
    saved = loop.save()
    return digest((saved.tree, dict(sorted(saved.arrays.items())))), saved.counters


def loop(kind):
    make, first, last = {"online": (online, 40, 80), "offline": (offline, 3, 6)}[kind]
    compiled = Compilations()
    one, whole, begun, resumed = (make(*mesh) for mesh in ([], *3 * [["mesh.data=2"]]))
    whole.warm_up(10_000)
    before = compiled.count
    for _ in range(last):
        whole.advance()
    after = compiled.count
    for _ in range(last):
        one.advance()
    for _ in range(first):
        begun.advance()
    wider = make("mesh.data=4")
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(Path(folder), 1).save(first, begun.save())
        saved = checkpoint.load(Path(folder))[0]
        for each in (resumed, wider):
            fresh = each.save()
            each.restore(saved.saved(fresh.tree, fresh.rows))
            for _ in range(last - first):
                each.advance()
    ends = [jax.tree.map(np.array, each.save().tree["state"].params) for each in (one, whole, wider)]
    facts = {
        "compiled_after_the_warm_up": after - before,
        "mesh": saved.counters["loop"]["mesh"],
        "same_bits": everything(resumed) == everything(whole),
        "distance": [distance(ends[0], each) for each in ends[1:]],
        "updates": whole.counts["updates"],
    }
    for each in (one, whole, begun, resumed, wider):
        each.close()
    return facts


def program(vmap, rate=1e-2):
    env = JaxVectorEnv(PROBES["probe/policy"], 4, name="probe")
    of = DQN(env.spec, functools.partial(networks.MLP, hidden=(16,)), heads.make("mse"), learning_rate=rate)
    return Program(
        of,
        env,
        ArrayReplay.of(env, capacity=512, min_size=32, gamma=0.5, prioritized=True),
        exploration=LinearDecay(1.0, 0.5, 1000),
        batch_size=16,
        update_period=4,
        vmap=vmap,
    )


def recorded(vmap, seeds):
    """A program whose lanes have different noise and held-out episodes."""
    layout = Layout(game="steps", frame_shape=(1,), frame_dtype="float32", num_actions=2)
    random, rows = np.random.default_rng(0), 400
    columns = random.normal(size=(rows, 1)), random.integers(0, 2, rows), random.normal(size=rows)
    types = np.float32, np.int32, np.float32
    ends = np.arange(rows) % 4 == 3
    starts = np.where(np.arange(rows) % 4 == 0, BEGINS, CONTINUES).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        with Writer(folder, layout, {}) as writer:
            writer.append(Rows(*map(np.asarray, columns, types), ends, starts))
            data = Transitions(writer.finish(), reward_noise=0.5, held_out=0.3)
        of = DQN(
            data.spec, functools.partial(networks.MLP, hidden=(16,)), heads.make("mse"), learning_rate=1e-2
        )
        return OfflineProgram(of, {seed: data.with_seed(seed) for seed in seeds}, batch_size=16, vmap=vmap)


def lanes(vmap, what):
    seeds = [3, 4, 5, 6]
    setting = program(vmap == "vmap") if what == "playing" else recorded(vmap == "vmap", seeds)
    compiled = Compilations()
    alone = Compiled([setting], seeds, log_every=80)
    spread = Compiled([setting], seeds, log_every=80, placement=Placement(data=2))
    spread.warm_up(800)
    lines = [spread.advance()]  # compiles the function that clears the sums after a line
    before = compiled.count
    lines += [spread.advance() for _ in range(7)]
    after = compiled.count
    same_lines = lines == [alone.advance() for _ in range(8)]
    ends = [jax.tree.map(np.array, each.acting()) for each in (alone, spread)]
    group, number = spread._groups[0], np.int32(0)
    text = (
        group._shared.run.lower(
            group.state, group._run_values, group._seeds, group._own, group._common, number, number
        )
        .compile()
        .as_text()
    )
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(Path(folder), 1).save(spread.counts[spread.unit], spread.save())
        resumed = Compiled([setting], seeds, log_every=80, placement=Placement(data=2))
        fresh = resumed.save()
        resumed.restore(checkpoint.load(Path(folder))[0].saved(fresh.tree, None))
    for each in (spread, resumed):
        for _ in range(4):
            each.advance()
    later = [digest(jax.tree.map(np.array, each.acting())) for each in (spread, resumed)]
    used = [leaf.devices() for group in spread._groups for leaf in jax.tree.leaves(group.state)]
    acts = [leaf.devices() for leaf in jax.tree.leaves(spread.acting())]
    return {
        "same_bits": same_lines and digest(ends[0]) == digest(ends[1]),
        "distance": distance(*ends),
        "resumed_same_bits": later[0] == later[1],
        "devices": sorted({str(device) for each in used for device in each}),
        "acting_devices": sorted({str(device) for each in acts for device in each}),
        "collectives": collectives(text)[0],
        "compiled_after_the_first_line": after - before,
    }


def refused(*commands):
    """The exit code of each training command, and what it prints to stderr."""
    facts = []
    for command in commands:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = train([*command.split(), "run_dir=refused"])
        facts.append((code, said.getvalue()))
    return facts


if __name__ == "__main__":
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = globals()[name](*arguments)
        print(json.dumps(answer), flush=True)
