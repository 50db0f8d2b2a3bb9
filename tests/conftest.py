"""What every test runs under: the CPU, a shared cache of compiled programs, and types checked at run time.

Every function of `rlcls` that a test calls is checked against its annotations, array shapes and dtypes
included. A test of our own error messages, which the check would come before, is marked `untyped`;
RLCLS_CHECK_TYPES=0 leaves the check out altogether. Subprocesses run without it, as users do.
"""

import atexit
import gc
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import types

# Before jax, matplotlib or rlcls are imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Programs that several tests need are compiled once. The cache begins empty, and the workers of pytest-xdist and the
# subprocesses of tests inherit its folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="rlcls-compiled-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Most programs of the suite run for less time than LLVM takes to optimise them. A GPU keeps its own level, and so do
# the compilers of tests/kernels/aot, of which libtpu is one. XLA aborts at a flag that it does not know, and releases
# of JAX after 0.10 have no choice of emitters; they compile as for a user.
if (
    os.environ["JAX_PLATFORMS"] == "cpu"
    and "XLA_FLAGS" not in os.environ
    and importlib.util.find_spec("libtpu") is None
    and importlib.metadata.version("jaxlib").startswith("0.10.")
):
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jaxtyping
import pytest
from beartype import BeartypeConf, beartype
from jax._src.interpreters import partial_eval

# Tracing makes many objects that stay, so there is little garbage to look for.
gc.set_threshold(20_000, 20, 100)

if os.environ.get("RLCLS_CHECK_TYPES", "1") != "0":
    # The hook takes its checker by an import path, and beartype's own refuses 1 where a float is annotated.
    checker = types.ModuleType("rlcls_type_checker")
    checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
    sys.modules[checker.__name__] = checker
    jaxtyping.install_import_hook("rlcls", f"{checker.__name__}.check")

# Flax asks every traced counter of random numbers for its sharding, which JAX refuses with a description of the whole
# program so far. Flax drops that description, and making a large network takes half as long without it.
partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""

# The first example of a property compiles for seconds, and a gate must not pass today and fail tomorrow.
hypothesis.settings.register_profile("rlcls", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rlcls")


if hasattr(signal, "SIGHUP"):  # nohup ignores it, and a run that it does not reach has nothing to save
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives all tests of a file to one worker, so that what they share is made once and not by every worker."""
    if config.option.dist == "load":  # what -n means by itself
        return importlib.import_module("xdist.scheduler").LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _patient_logs(monkeypatch):
    """Keeps the line that a phase writes to a log after five seconds out of what a test reads on a busy machine."""
    monkeypatch.setattr("rlcls.phases.PATIENCE", 3600.0)


@pytest.fixture(autouse=True)
def _own_errors(request):
    """Lets a test marked `untyped` see the library's own errors."""
    untyped = request.node.get_closest_marker("untyped") is not None
    jaxtyping.config.update("jaxtyping_disable", untyped)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
