"""A run that needs too much memory is refused at once, with a value that fits."""

import re
import resource
from unittest.mock import create_autospec

import pytest

from rlcls._errors import UserError
from rlcls.cli import build, compose, packages, resources
from rlcls.training import Placement

GIB = 2**30


@pytest.fixture
def eight_gib(monkeypatch):
    monkeypatch.setattr(resources, "available", lambda: 8 * GIB)


def check(*overrides, placement=None):
    config = compose.compose([*overrides])
    env = build.environment(config)
    try:
        placement = placement or build.placement(config)
        resources.check(config, build.agent(config, env.spec), env.spec, env.frame_stack, placement)
    finally:
        env.close()


VECTORS = ["env=gymnasium", "backbone=mlp"]
TOO_LARGE = {
    "replay.capacity=2000000": (["recipe=paper"], r"; 990,000 would fit$"),
    "replay.capacity=1000000000": (VECTORS, r"; \d{3},000,000 would fit$"),
    "diagnostics.batch_size=1000000": ([], r"; \d\d?0,000 would fit$"),
    "eval.episodes=1000000000000": (VECTORS, r"; \d\d,000,000 would fit$"),
    "loss.num_bins=1000000": ([*VECTORS, "backbone.hidden=[512]"], None),
    "backbone.hidden=[1000000,1000000]": (VECTORS, None),
}


@pytest.mark.parametrize("option", TOO_LARGE)
def test_a_run_that_does_not_fit_is_refused_with_a_value_that_fits(option, eight_gib):
    others, ending = TOO_LARGE[option]
    with pytest.raises(UserError, match=ending) as error:
        check(*others, option)
    subject = re.escape(option) if ending else r"a network of \d[\d,]* parameters"
    assert re.match(
        rf"{subject} needs [\d,.]+ GiB of memory, the whole run [\d,.]+, and this process has room for 6.7 \(of 8.0\)",
        str(error.value),
    )


def test_the_larger_of_two_options_that_are_both_too_large_is_named(eight_gib):
    with pytest.raises(UserError, match=r"^eval.episodes=1000000000000 needs [\d,.]+ GiB .*\(of 8.0\)$"):
        check(*VECTORS, "replay.capacity=100000000000", "eval.episodes=1000000000000")


def test_a_value_that_the_error_names_fits(eight_gib):
    with pytest.raises(UserError) as error:
        check(*VECTORS, "replay.capacity=1000000000")
    fits = str(error.value).rpartition("; ")[2].removesuffix(" would fit").replace(",", "")
    check(*VECTORS, f"replay.capacity={fits}")


def test_each_device_of_a_cpu_needs_a_network(monkeypatch):
    monkeypatch.setattr(resources, "available", lambda: GIB)
    network = [*VECTORS, "backbone.hidden=[2000,2000]"]
    check(*network)
    monkeypatch.setattr(Placement, "devices_here", 8)
    with pytest.raises(UserError, match=r"a network of 4,\d{3},\d{3} parameters on each of 8 devices needs"):
        check(*network)


def test_a_replay_of_nearly_all_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(resources, "available", lambda: int(23.5 * GIB))
    capacity = int(22.3 * GIB) // 7093
    with pytest.raises(UserError, match=rf"^replay.capacity={capacity} needs 22\.3 GiB of memory"):
        check(f"replay.capacity={capacity}")


def test_the_default_runs_fit_into_four_gib(monkeypatch):
    monkeypatch.setattr(resources, "available", lambda: 4 * GIB)
    check()
    check(*VECTORS)


def system(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "3000\n"}, 3000),
        # The limit of the enclosing group counts, and "max" is no limit.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "5000\n",
            },
            5000,
        ),
        # In a container, the path is that on the host, and the group's files are at the root.
        ({"proc/self/cgroup": "0::/docker/17\n", "sys/fs/cgroup/memory.max": "7000\n"}, 7000),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory:/x\n0::/\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            4000,
        ),
    ],
)
def test_the_memory_of_a_control_group_is_what_a_process_may_use(files, limit, tmp_path):
    assert resources.available(system(tmp_path, files)) == limit


def test_without_a_control_group_the_limit_is_the_machines_memory_or_ulimit(tmp_path, monkeypatch):
    machine = resources.available(tmp_path)
    assert machine is not None and machine > GIB
    monkeypatch.setattr(resource, "getrlimit", lambda which: (machine // 2, resource.RLIM_INFINITY))
    assert resources.available(tmp_path) == machine // 2


def test_a_limit_of_open_files_is_raised_and_one_that_cannot_be_is_one_line(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (20, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    resources.allow_open_files()
    assert limits == [(256, 4096)]

    def refuse(which, pair):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (20, 20))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(UserError) as error:
        resources.allow_open_files()
    assert (
        str(error.value) == "this process may open 20 files and a checkpoint needs up to 256: ulimit -n 256"
    )


def test_a_package_that_cannot_be_imported_is_named_before_training(monkeypatch):
    packages.import_all(tensorboard=True)

    def broken(name):
        if name == "orbax.checkpoint":
            raise AttributeError("module 'jax' has no attribute 'thing'")

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    with pytest.raises(UserError) as error:
        packages.import_all(tensorboard=False)
    assert str(error.value) == (
        "orbax.checkpoint cannot be imported (AttributeError: module 'jax' has no attribute 'thing'); "
        'pip install --upgrade "rlcls[train]", or in a checkout of rlcls pip install --upgrade -e ".[train]" installs '
        "versions that fit"
    )


def test_a_compiled_run_is_compared_with_the_memory_of_its_device(monkeypatch):
    class Device:
        @staticmethod
        def memory_stats():
            return {"bytes_limit": 8 * GIB}

    monkeypatch.setattr(resources, "available", lambda: 1 << 50)
    monkeypatch.setattr(resources.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(resources.jax, "local_devices", lambda: [Device()])
    compiled = ["env=probe", "game=probe/policy", "loop=compiled", "recipe=minatar", "seeds=10"]
    check(*compiled, "replay.capacity=10000000")
    with pytest.raises(UserError, match="^10 times replay.capacity=20000000 needs 7.6 GiB of memory"):
        check(*compiled, "replay.capacity=20000000")
    five_seeds_on_each = create_autospec(Placement, instance=True, data=2)
    check(*compiled, "replay.capacity=20000000", placement=five_seeds_on_each)
