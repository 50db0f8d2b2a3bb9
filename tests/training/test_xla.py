"""Compiler options that a compiler does not know cause a warning and no error."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from rlcls._errors import UserError
from rlcls.training import xla


@pytest.fixture(autouse=True)
def _fresh():
    xla._options.cache_clear()
    yield
    xla._options.cache_clear()


def test_options_that_this_compiler_knows_are_used_and_change_no_result_beyond_rounding():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = xla.jit(lambda x: jnp.tanh(x @ x.T))
    x = jax.random.normal(jax.random.key(0), (32, 16))
    assert jnp.allclose(fast(x), jnp.tanh(x @ x.T), atol=1e-5)


def test_the_uses_of_random_numbers_have_the_numbers_of_earlier_versions():
    uses = {"INIT": 0, "ACT": 1, "UPDATE": 2, "EVALUATION": 3, "ENVIRONMENT": 4, "COLLECTION": 5, "SAMPLE": 6}
    uses["NOISE"] = 7
    assert {use.name: use.value for use in xla.Use} == uses
    (key,) = xla.keys(7, xla.Use.EVALUATION)
    assert key == jax.random.fold_in(jax.random.key(7), 3)


def test_an_option_that_this_compiler_does_not_know_is_dropped_with_one_warning(monkeypatch):
    monkeypatch.setattr(xla, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    with pytest.warns(
        UserWarning, match="does not know xla_cpu_no_such_option; updates will be slower"
    ) as said:
        first, second = xla.jit(lambda x: x + 1), xla.jit(lambda x: x + 2)
    assert len(said) == 1
    assert (first(1), second(1)) == (2, 3)


def test_compiled_programs_are_in_the_users_cache_unless_jax_is_configured_with_a_folder(
    monkeypatch, tmp_path
):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    try:
        # Without a home folder, or with one that cannot be written, nothing is cached.
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(xla.Path, "home", _no_home)
        xla.cache_compilations()
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        xla.cache_compilations()
        assert jax.config.values["jax_compilation_cache_dir"] is None
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        xla.cache_compilations()
        assert jax.config.values["jax_compilation_cache_dir"] == "elsewhere"
        jax.config.update("jax_compilation_cache_dir", None)
        xla.cache_compilations()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "rlcls" / "xla")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'x': no x (set JAX_PLATFORMS='')"), AssertionError()]
)
def test_a_platform_that_jax_cannot_start_is_one_line(error, monkeypatch):
    def devices(*name):
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError) as caught:
        xla.choose_device(None)
    reason = " (Unable to initialize backend 'x': no x)" if str(error) else ""
    assert str(caught.value) == (
        f"JAX_PLATFORMS=cpu: JAX finds no such device{reason}; JAX_PLATFORMS=cpu always works, and without the "
        "variable JAX takes the fastest device that it finds"
    )


def test_without_the_promotion_of_dtypes_that_optax_needs_the_error_is_one_line():
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    try:
        with pytest.raises(UserError, match="^JAX_NUMPY_DTYPE_PROMOTION=strict: optax needs standard"):
            xla.choose_device(None)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "standard")
