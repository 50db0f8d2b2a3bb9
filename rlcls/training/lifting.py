"""Makes one function of several that differ only in their numbers, such as a learning rate.

A loop that vmaps over settings needs these numbers as arguments, but agents, heads and optimisers take them when they
are made and check them there. `lift` therefore traces each function and compares the traces. The constants that differ
become arguments of the first trace. If the traces differ in more than constants, as those of heads with different
numbers of bins do, there is no common function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend import core
from jax.typing import ArrayLike
from jaxtyping import PyTree

# Primitives that call a jaxpr. `_evaluate` evaluates the jaxpr in place of the call, which loses no custom derivative,
# because the trace already contains derivatives.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class Lifted(NamedTuple):
    """One function that stands for several.

    Attributes:
      function: (values, *arguments) -> the result of the k-th function, where `values` are the k-th of the list.
      values: for each function, the constants that differ between functions, as arrays.
    """

    function: Callable[..., Any]
    values: list[list[np.ndarray]]


def lift(functions: Sequence[Callable[..., Any]], *arguments: PyTree) -> Lifted | None:
    """One function that stands for all of them; None if they differ in more than constants.

    Args:
      functions: pure functions.
      arguments: arrays or `jax.ShapeDtypeStruct`s that all of them take.
    """
    traces = [jax.make_jaxpr(function, return_shape=True)(*arguments) for function in functions]
    walks = [list(_walk(jaxpr.jaxpr, jaxpr.consts)) for jaxpr, _ in traces]
    structures = [[word for kind, word in walk if kind == "structure"] for walk in walks]
    if any(structure != structures[0] for structure in structures[1:]):
        return None
    constants = [[value for kind, value in walk if kind == "constant"] for walk in walks]
    differs = [any(not _same(value, each[0]) for value in each[1:]) for each in zip(*constants, strict=True)]
    values = [[value for value, changes in zip(each, differs, strict=True) if changes] for each in constants]
    first, shape = traces[0]
    tree = jax.tree.structure(shape)
    # The place of each constant that changes among the lifted values.
    places = np.cumsum(differs) - 1

    def function(lifted: Sequence[ArrayLike], *arguments: PyTree) -> Any:
        def take(number: int, constant: Any) -> Any:
            return lifted[places[number]] if differs[number] else constant

        outputs, _ = _evaluate(first.jaxpr, first.consts, jax.tree.leaves(arguments), take, 0)
        return jax.tree.unflatten(tree, outputs)

    return Lifted(function, values)


def _inner(equation: Any) -> list[Any]:
    """The closed jaxprs of a call, of branches or of a loop, in the order of `_bind`; empty for other equations."""
    parameters, name = equation.params, equation.primitive.name
    if name == "cond":
        return list(parameters["branches"])
    if name == "scan":
        return [parameters["jaxpr"]]
    if name == "while":
        return [parameters["cond_jaxpr"], parameters["body_jaxpr"]]
    if name in _CALLS:
        return [next(parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters)]
    return []


def _walk(jaxpr: Any, consts: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The parts of a jaxpr, as ("structure", text) and ("constant", array), in the order of `_evaluate`."""
    names: dict[Any, int] = {}

    def name(variable: Any) -> str:
        return f"{names.setdefault(variable, len(names))}:{variable.aval.str_short()}"

    for variable, value in zip(jaxpr.constvars, consts, strict=True):
        yield "structure", name(variable)
        if _is_key(
            variable.aval
        ):  # different keys make different structures, because `_plain` cannot lift a key
            yield "structure", str(jax.random.key_data(value))
        yield "constant", _plain(value, variable.aval)
    yield "structure", " ".join(name(variable) for variable in jaxpr.invars)
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if isinstance(variable, core.Literal):
                yield "structure", variable.aval.str_short()
                yield "constant", _plain(variable.val, variable.aval)
            else:
                yield "structure", name(variable)
        inner = _inner(equation)
        yield "structure", f"{equation.primitive.name} {_parameters(equation, without_jaxprs=bool(inner))}"
        for closed in inner:
            yield from _walk(closed.jaxpr, closed.consts)
        yield "structure", " ".join(variable.aval.str_short() for variable in equation.outvars)
        for variable in equation.outvars:
            name(variable)
    for variable in jaxpr.outvars:
        if isinstance(variable, core.Literal):
            yield "constant", _plain(variable.val, variable.aval)
        else:
            yield "structure", name(variable)


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], take: Callable[[int, Any], Any], number: int
) -> tuple[list[Any], int]:
    """The outputs of a jaxpr in which `take` decides about each constant.

    Args:
      jaxpr: an open jaxpr.
      consts: its constants.
      arguments: its arguments.
      take: take(k, constant) returns the value of the k-th constant in the order of `_walk`.
      number: the number of the first constant.

    Returns:
      The outputs, and the number after the last constant.
    """
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        nonlocal number
        if isinstance(variable, core.Literal):
            number += 1
            return take(number - 1, variable.val)
        return values[variable]

    for variable, value in zip(jaxpr.constvars, consts, strict=True):
        values[variable] = take(number, value)
        number += 1
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        functions = []
        for closed in _inner(equation):
            functions.append(_function(closed, take, number))
            number += sum(kind == "constant" for kind, _ in _walk(closed.jaxpr, closed.consts))
        values.update(zip(equation.outvars, _bind(equation, inputs, functions), strict=True))
    return [read(variable) for variable in jaxpr.outvars], number


def _function(closed: Any, take: Callable[[int, Any], Any], number: int) -> Callable[..., list[Any]]:
    """A closed jaxpr as a function, whose constants are numbered from `number` on."""
    return lambda *arguments: _evaluate(closed.jaxpr, closed.consts, arguments, take, number)[0]


def _bind(equation: Any, inputs: list[Any], functions: list[Callable[..., list[Any]]]) -> Sequence[Any]:
    """The outputs of an equation, in which `functions` replace the jaxprs."""
    parameters, name = equation.params, equation.primitive.name
    if name == "cond":
        index, *operands = inputs
        return lax.switch(index, functions, *operands)
    if name == "scan":
        # Releases of JAX differ in the parameters that count carried and scanned values. A scanned value has one more
        # axis outside the loop than inside.
        inner = parameters["jaxpr"].jaxpr
        carried = sum(
            a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, inner.outvars, strict=True)
        )
        scanned = sum(a.aval.ndim != b.aval.ndim for a, b in zip(equation.invars, inner.invars, strict=True))
        first, last = len(inputs) - carried - scanned, len(inputs) - scanned
        fixed, carry, xs = inputs[:first], inputs[first:last], inputs[last:]

        def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            outputs = functions[0](*fixed, *carry, *x)
            return outputs[:carried], outputs[carried:]

        options = {option: parameters[option] for option in ("length", "reverse", "unroll")}
        carry, ys = lax.scan(body, carry, xs, **options)
        return [*carry, *ys]
    if name == "while":
        of_test, of_body = parameters["cond_nconsts"], parameters["body_nconsts"]
        test, fixed = inputs[:of_test], inputs[of_test : of_test + of_body]
        carry = inputs[of_test + of_body :]
        return lax.while_loop(
            lambda carry: functions[0](*test, *carry)[0], lambda carry: functions[1](*fixed, *carry), carry
        )
    if functions:
        return functions[0](*inputs)
    bound = equation.primitive.get_bind_params(parameters)
    # Some releases of JAX return (arguments, options), and others only the options.
    arguments, options = bound if isinstance(bound, tuple) else ((), bound)
    outputs = equation.primitive.bind(*arguments, *inputs, **options)
    return outputs if equation.primitive.multiple_results else [outputs]


def _parameters(equation: Any, *, without_jaxprs: bool) -> str:
    """The parameters of an equation as a text, with the constants of its jaxprs.

    `without_jaxprs` leaves out those jaxprs that `_walk` compares.
    """
    parameters = dict(equation.params)
    if without_jaxprs:
        if equation.primitive.name in _CALLS:
            return ""
        parameters = {
            name: each for name, each in parameters.items() if name != "branches" and "jaxpr" not in name
        }
    elif "call" in parameters:
        parameters.pop("rule", None)  # the rule for vmap, which "call" determines
    return str({name: _word(parameters[name]) for name in sorted(parameters)})


def _word(parameter: Any) -> Any:
    """A value whose text is the same for equal parameters."""
    if isinstance(parameter, core.ClosedJaxpr):
        return [(kind, _word(word)) for kind, word in _walk(parameter.jaxpr, parameter.consts)]
    if isinstance(parameter, core.Jaxpr):
        return [(kind, _word(word)) for kind, word in _walk(parameter, ())]
    if isinstance(parameter, (tuple, list)):
        return [_word(each) for each in parameter]
    if isinstance(parameter, np.ndarray):
        return parameter.dtype.name, parameter.shape, parameter.tobytes()
    return str(parameter)


def _plain(value: Any, aval: Any) -> Any:
    """A constant as a numpy array of its dtype; None for a random key, which is part of the structure."""
    return None if _is_key(aval) else np.asarray(value, aval.dtype)


def _is_key(aval: Any) -> bool:
    return jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, np.ndarray) and a.tobytes() == b.tobytes())
