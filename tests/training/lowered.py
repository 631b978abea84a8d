"""Reads traced programs: their equations, and the operations of their matrix products and convolutions."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def equations(jaxpr, name: str) -> Iterator[Any]:
    """All equations of the primitive ``name``, including those of inner programs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in _inner(equation):
            yield from equations(inner, name)


def _inner(equation) -> list[Any]:
    """The inner programs of an equation, without their constants."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif hasattr(item, "eqns"):
                found.append(item)
    return found


def operations(equation) -> float:
    """Operations of a matrix product or convolution, from its shapes (a multiply-add is two); 0 for other equations."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        spec = equation.params["dimension_numbers"].rhs_spec
        window = math.prod(kernel[axis] for axis in spec[1:])  # all axes but the output channels
        # Products with the zeros of a dilated input are not counted.
        spread = math.prod(equation.params["lhs_dilation"])
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * window / spread
    if "dot" in equation.primitive.name or "pallas" in equation.primitive.name:
        raise NotImplementedError(f"products of {equation.primitive.name}")
    return 0.0


def bounded(jaxpr, times: float = 1.0) -> Iterator[float]:
    """Operations of each product in a program, times the trips of the loops around it.

    Raises:
      ValueError: a product is in a loop whose number of trips is not static.
    """
    for equation in jaxpr.eqns:
        count = operations(equation)
        if count:
            yield count * times
        trips = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for inner in _inner(equation):
            found = list(bounded(inner, trips))
            if found and equation.primitive.name == "while":
                raise ValueError("products in a loop without a static number of trips")
            yield from found


def executed(closed, *arguments) -> tuple[list[Any], float]:
    """Runs a program equation by equation. Returns its results and the operations of the products that it executed."""
    jaxpr, total = closed.jaxpr, 0.0
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]  # noqa: E731
    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        results, count = _execute(equation, given)
        total += count
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], total


def _execute(equation, given: list[Any]) -> tuple[list[Any], float]:
    name, params = equation.primitive.name, equation.params
    if name == "while":
        return _execute_while(params, given)
    if name == "scan":
        return _execute_scan(equation, given)
    if name == "cond":
        return executed(params["branches"][int(given[0])], *given[1:])
    inner = [item for item in params.values() if isinstance(item, core.ClosedJaxpr)]
    if inner:
        return executed(inner[0], *given)
    results = equation.primitive.bind(*given, **params)
    return (results if equation.primitive.multiple_results else [results]), operations(equation)


def _execute_while(params, given) -> tuple[list[Any], float]:
    a, b = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    carried, total = given[b:], 0.0
    while executed(params["cond_jaxpr"], *given[:a], *carried)[0][0]:
        carried, count = executed(params["body_jaxpr"], *given[a:b], *carried)
        total += count
    return carried, total


def _execute_scan(equation, given) -> tuple[list[Any], float]:
    """For loops that stack no results. The shapes of the body tell carried values from sliced ones."""
    body, length, total = equation.params["jaxpr"], equation.params["length"], 0.0
    assert not equation.params["reverse"] and len(body.out_avals) == len(equation.outvars)
    outer, inner = [atom.aval.shape for atom in equation.invars], [aval.shape for aval in body.in_avals]
    sliced = sum(whole == (length, *row) for whole, row in zip(outer, inner, strict=True))
    first = len(given) - sliced - len(body.out_avals)
    carried, rows = given[first : len(given) - sliced], given[len(given) - sliced :]
    for i in range(length):
        carried, count = executed(body, *given[:first], *carried, *(whole[i] for whole in rows))
        total += count
    return carried, total
