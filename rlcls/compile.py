"""Compiles an update for devices that need not be there: `python -m rlcls.compile target=v5e:2x2 game=Pong`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlcls._errors import UserError, command, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcls.chips import Target
    from rlcls.spec import Spec

_HELP = """Compiles one update of an agent for devices that this machine need not have, and reports its memory and work.

usage: python -m rlcls.compile target=DEVICES [out=FILE] [name=value ...]

target=DEVICES    v5e:2x2, v5e:16x16, v6e:2x4, v5p:2x2x1, v4:2x2x1: a TPU slice, compiled by libtpu
                  h100:8, h100:16: GPUs, compiled by jax-cuda12-plugin
out=FILE          also write the report as JSON
name=value        options of rlcls.train; mesh.data is the number of devices divided by mesh.model, and all devices
                  share training.batch_size

The report has the memory of a device, FLOPs, and the number and bytes of each kind of collective. The exit code is 1
if the update does not fit into a device's memory. Nothing runs on a device, so only the compiler is timed."""
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_SHAPE = re.compile(rf"\b({'|'.join(_BYTES)}|f64|s64|u64)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


class Collective(NamedTuple):
    """The collectives of one kind in a program.

    Attributes:
      number: the number of collectives.
      bytes: the bytes of their results on one device, in one update.
    """

    number: int
    bytes: int


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 if the update does not fit, or 2 for a mistake of the user's."""
    return command(_command, argv)


def _command(argv: list[str]) -> int:
    if {"--help", "-h"} & set(argv):
        print(_HELP)
        return 0
    named = {
        name: value for name, _, value in (each.partition("=") for each in argv) if name in ("target", "out")
    }
    if not named.get("target"):
        raise UserError("say what to compile for, such as target=v5e:2x2; --help says more")
    from rlcls import chips
    from rlcls.cli.compose import compose
    from rlcls.phases import phase
    from rlcls.training import xla

    xla.choose_device("cpu")
    config = compose([each for each in argv if each.partition("=")[0] not in named], trains=False)
    target = chips.target(named["target"])
    with phase(f"compiling for {target.name}"):
        report = measure(config, target)
    print(_text(report))
    if out := named.get("out"):
        from rlcls.files import write_text

        write_text(Path(out), json.dumps(report, indent=1) + "\n")
    return 0 if report["fits"] else 1


def measure(config: DictConfig, target: Target) -> dict[str, Any]:
    """Compiles the update of a configuration for a target.

    Raises:
      UserError: the parts do not match, the mesh does not divide the devices or the batch, or the compiler refuses the
        program.
    """
    import contextlib

    import jax
    import numpy as np

    from rlcls import networks
    from rlcls.cli import build
    from rlcls.training.learner import update_of
    from rlcls.training.placement import Placement

    with contextlib.closing(build.one_environment(config)) as env:
        spec = env.spec
    agent = build.agent(config, spec)
    model = config.mesh.model
    if len(target.devices) % model:
        raise UserError(
            f"mesh.model={model} does not divide the {len(target.devices)} devices of {target.name}"
        )
    try:
        placement = Placement(len(target.devices) // model, model, config.mesh.rules, devices=target.devices)
        placement.check_batch(batch_size=config.training.batch_size)
    except ValueError as error:
        raise UserError(one_line(error)) from error
    key = jax.random.key(0)
    state = placement.shapes(agent.init, key)
    batch = placement.shapes_of_batch(_batch(spec, config.training.batch_size))
    number = placement.shapes_everywhere(jax.ShapeDtypeStruct((), np.int32))
    begun = time.perf_counter()
    try:
        compiled = update_of(agent, key, placement, state).lower(state, batch, number).compile()
    except Exception as error:  # the compilers have errors of many types
        raise UserError(
            f"{target.name}: the compiler refuses the update ({one_line(error)[:300]})"
        ) from error
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    acting = jax.eval_shape(lambda key: agent.acting(agent.init(key)), key)
    return {
        "target": target.name,
        "device": target.devices[0].device_kind,
        "devices": len(target.devices),
        "hosts": len({device.process_index for device in target.devices}),
        "mesh": placement.sizes,
        "agent": config.choices.agent,
        "loss": config.choices.loss,
        "backbone": config.choices.backbone,
        "parameters": networks.count_parameters(getattr(acting, "params", acting)),
        "batch_size": config.training.batch_size,
        "seconds": round(time.perf_counter() - begun, 1),
        "memory": sizes,
        "memory_of_device": target.memory,
        "fits": sum(sizes.values()) <= target.memory,
        "flops": cost.get("flops"),
        "collectives": {name: each._asdict() for name, each in collectives(compiled.as_text()).items()},
        "jax": jax.__version__,
    }


def collectives(text: str) -> dict[str, Collective]:
    """The collectives of a compiled program by kind.

    Args:
      text: the optimised HLO.

    >>> collectives("  %a = (f32[8]{0}, f32[2,3]{1,0}) all-reduce(%x, %y), replica_groups={}")
    {'all-reduce': Collective(number=1, bytes=56)}
    """
    total: dict[str, Collective] = {}
    for result, kind, is_start in _COLLECTIVE.findall(text):
        sizes = list(_sizes(result))
        # The result of an asynchronous collective also contains its operands, except for an all-reduce.
        size = sum(sizes) // (2 if is_start and kind != "all-reduce" else 1)
        before = total.get(kind, Collective(0, 0))
        total[kind] = Collective(before.number + 1, before.bytes + size)
    return total


def _sizes(text: str) -> Iterator[int]:
    """The bytes of each array in the text of a result."""
    for dtype, shape in _SHAPE.findall(text):
        size = _BYTES.get(dtype, 8)
        for length in filter(None, shape.split(",")):
            size *= int(length)
        yield size


def _batch(spec: Spec, size: int) -> Any:
    """The shapes of a batch with all fields of recorded data."""
    import jax
    import numpy as np

    from rlcls.transition import Transition

    def many(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype)

    observation, action = jax.tree.map(many, spec.observation), many(spec.action)
    number = jax.ShapeDtypeStruct((size,), np.float32)
    shapes: Any = (observation, action, number, number, observation, number, action, number)
    return Transition(*shapes)


def _text(report: dict[str, Any]) -> str:
    memory, limit = report["memory"], report["memory_of_device"]
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in memory.items())
    mesh = ", ".join(f"{name}={size}" for name, size in report["mesh"].items())
    flops = "unknown" if report["flops"] is None else f"{report['flops'] / 1e9:,.2f} GFLOP on a device"
    lines = [
        ("target", f"{report['target']}: {report['devices']} x {report['device']}, hosts: {report['hosts']}"),
        ("mesh", mesh),
        (
            "update",
            f"{report['agent']}, {report['loss']}, {report['backbone']}, {report['parameters']:,} parameters",
        ),
        (
            "batch",
            f"{report['batch_size']:,}, {report['batch_size'] // report['mesh']['data']:,} on a row of the mesh",
        ),
        ("compiled in", f"{report['seconds']} s by JAX {report['jax']}"),
        ("memory", f"{sum(memory.values()) / 1e6:,.1f} of {limit / 1e6:,.0f} MB of a device ({parts})"),
        ("work", flops),
        *(
            (name, f"{each['number']}, {each['bytes'] / 1e6:,.3f} MB on a device")
            for name, each in report["collectives"].items()
        ),
    ]
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:{width}}  {value}" for name, value in lines)
    if not report["fits"]:
        text += "\nIt does not fit: give a larger mesh.model, a smaller batch, or backbone.dtype=bfloat16."
    return text


if __name__ == "__main__":
    sys.exit(main())
