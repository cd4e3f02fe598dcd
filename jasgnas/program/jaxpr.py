"""The only module that touches JAX's own jaxprs: everything else reads the `Program` defined here.

A `Program` is a jaxpr whose variables are plain integers. It can be inlined (calls opened up, for analysis) or kept
nested (so that custom gradients and rematerialisation survive evaluation).
"""

import itertools
import sys
import sysconfig
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.interpreters import partial_eval

# Primitives that only call another jaxpr once, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


@dataclass(frozen=True, eq=False)
class Literal:
    """A constant operand written into the equation itself; a scalar in practice."""

    value: Any
    aval: Any


Atom = int | Literal


@dataclass(frozen=True, eq=False)
class Equation:
    """One equation.

    Attributes:
        primitive: name of the primitive.
        bind: binds the primitive to new operands; keyword arguments replace parameters.
        params: parameters of the primitive.
        inputs: operands, a variable number or a `Literal` each.
        outputs: variable numbers of the results.
        in_avals: shape and dtype of each operand.
        out_avals: shape and dtype of each result.
        body: the program it calls, or None.
        calls: the calls that enclose it after inlining, outermost first, as `(number of the call, its name)`.
        sources: what JAX knows of the code that made it and, after inlining, the calls that enclose it, outermost last.
        number: its place among all equations of the nested program, counted as they run; -1 before inlining. What is in
            a loop that has been opened up has the number of the loop.
        place: its place among the equations of one iteration of a loop that has been opened up; -1 outside of those.
            Iterations are alike: what has the same number and place is the same equation in several of them.
        repeats: how often it is evaluated in one evaluation of the program.
    """

    primitive: str
    bind: Callable[..., list[Any]]
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    in_avals: tuple[Any, ...]
    out_avals: tuple[Any, ...]
    body: "Program | None" = None
    calls: tuple[tuple[int, str], ...] = ()
    sources: tuple[Any, ...] = ()
    number: int = -1
    place: int = -1
    repeats: int = 1

    @property
    def scope(self) -> str:
        """The scopes of `jax.named_scope` that it was made in, joined by `/`; empty if there are none."""
        return "/".join(filter(None, (str(source.name_stack) for source in reversed(self.sources))))

    @cached_property
    def where(self) -> str:
        """The line of the user's code that made it, as `file:line:column (function)`; empty if that is not known.

        What a function of JAX computes, `jax.nn.relu` for example, was made where that function was called.
        """
        return next(filter(None, map(_user_line, self.sources)), "")

    @cached_property
    def kind(self) -> Hashable:
        """All that its rule goes by, besides what is known of its operands: the same for equations that are alike.

        These are the primitive and its parameters, literal operands, shapes and dtypes.
        """
        literals = tuple(str(atom.value) for atom in self.inputs if isinstance(atom, Literal))
        is_literal = tuple(isinstance(atom, Literal) for atom in self.inputs)
        shapes = tuple((aval.shape, aval.dtype) for aval in (*self.in_avals, *self.out_avals))
        params = tuple(sorted(self.params.items(), key=lambda item: item[0]))
        kind = (self.primitive, literals, is_literal, shapes, params)
        try:
            hash(kind)
        except TypeError:  # a parameter is not hashable: it is like no other
            return self
        return kind

    @cached_property
    def inner(self) -> "list[Program]":
        """The programs that it runs: the one it calls, the body of a loop, the branches of a condition."""
        match self.primitive:
            case "cond":
                jaxprs = self.params["branches"]
            case "scan":
                jaxprs = [self.params["jaxpr"]]
            case "while":
                jaxprs = [self.params["cond_jaxpr"], self.params["body_jaxpr"]]
            case _:
                return [] if self.body is None else [self.body]
        return list(map(from_jaxpr, jaxprs))


def _user_line(source: Any) -> str:
    # From the inside out: first the layers that the model uses, then the model itself, then the library and its caller.
    frames = reversed(source_info_util.summarize(source, num_frames=sys.maxsize).splitlines())
    of_model = list(itertools.takewhile(lambda frame: not frame.startswith(_JASGNAS), frames))
    return next((frame for frame in of_model if not frame.startswith(_INSTALLED)), "".join(of_model[:1]))


_JASGNAS = str(Path(__file__).parents[1])
_INSTALLED = sysconfig.get_path("purelib")


@dataclass(frozen=True, eq=False)
class Program:
    """A jaxpr over integer variables, equations in topological order.

    Attributes:
        inputs: variable numbers of the arguments.
        outputs: the results, a variable number or a `Literal` each.
        equations: the equations.
        avals: shape and dtype of every variable, by number.
        constants: values of the variables that are constants.
        name: name of the function it was traced from, if any.
    """

    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    equations: tuple[Equation, ...]
    avals: dict[int, Any]
    constants: dict[int, Any] = field(default_factory=dict)
    name: str = ""


def trace(fn: Callable[..., Any], *args: Any) -> Program:
    """Traces `fn` at abstract arguments (arrays or `ShapeDtypeStruct`s) into a nested `Program`."""
    with _brief_tracers():
        return from_jaxpr(jax.make_jaxpr(fn)(*args))


@contextmanager
def _brief_tracers() -> Iterator[None]:
    """Has tracers not tell where they come from when they are asked for what only a concrete array has.

    An `nnx.Variable` asks every array it is set to for its `sharding`, and the message of the `AttributeError`, which
    nobody reads, goes through all equations so far: tracing a network with many batch norms in training mode would take
    a time that grows with the square of its size.
    """
    tracer: Any = partial_eval.DynamicJaxprTracer
    if _ORIGIN_MESSAGE is None:
        yield
        return
    tracer._origin_msg = lambda self: ""
    try:
        yield
    finally:
        tracer._origin_msg = _ORIGIN_MESSAGE


_ORIGIN_MESSAGE = getattr(partial_eval.DynamicJaxprTracer, "_origin_msg", None)


def from_jaxpr(jaxpr: Any) -> Program:
    """Turns a (closed or open) jaxpr into a nested `Program`; equal inner jaxprs become one object."""
    return _convert(jaxpr, {})


def _convert(closed: Any, cache: dict[int, tuple[Any, Program]]) -> Program:
    # The key is the identity of an object that the cache entry keeps alive.
    if (known := cache.get(id(closed))) is not None:
        return known[1]
    jaxpr = getattr(closed, "jaxpr", closed)
    numbers: dict[Any, int] = {}
    avals: dict[int, Any] = {}

    def define(var: Any) -> int:
        number = len(avals)
        avals[number] = var.aval
        numbers[var] = number
        return number

    def read(atom: Any) -> Atom:
        return Literal(atom.val, atom.aval) if isinstance(atom, jex.Literal) else numbers[atom]

    constants = dict(zip(map(define, jaxpr.constvars), getattr(closed, "consts", ()), strict=True))
    inputs = tuple(map(define, jaxpr.invars))
    equations = []
    for eqn in jaxpr.eqns:
        operands = tuple(map(read, eqn.invars))
        inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        equations.append(
            Equation(
                primitive=eqn.primitive.name,
                bind=_binder(eqn),
                params=eqn.params,
                inputs=operands,
                outputs=tuple(map(define, eqn.outvars)),
                in_avals=tuple(v.aval for v in eqn.invars),
                out_avals=tuple(v.aval for v in eqn.outvars),
                body=None if inner is None else _convert(inner, cache),
                sources=(eqn.source_info,),
            )
        )
    name = getattr(jaxpr.debug_info, "func_name", "") or ""
    program = Program(inputs, tuple(map(read, jaxpr.outvars)), tuple(equations), avals, constants, name)
    cache[id(closed)] = closed, program
    return program


def _binder(eqn: Any) -> Callable[..., list[Any]]:
    def bind(*operands: Any, **changes: Any) -> list[Any]:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params | changes))
        return list(results) if eqn.primitive.multiple_results else [results]

    return bind


ITERATION = jax.ShapeDtypeStruct((), np.int32)
"""What the number of an iteration of a loop is like."""


def call_name(equation: Equation) -> str:
    """Returns the name of the function that is called, or nothing if it has none."""
    name = equation.params.get("name") or (equation.body.name if equation.body is not None else "")
    return "" if name.startswith("<") else name  # a lambda has no name


def inline(program: Program, opened: Mapping[int, Program] = MappingProxyType({})) -> Program:
    """Opens up every call, so that one flat list of first-order equations is left, and drops dead equations.

    Args:
        program: a nested program.
        opened: programs in the place of loops, by the numbers of their equations. They take one argument more than the
            loop, the number of the iteration, which the flat program has as its last input.
    """
    avals: dict[int, Any] = {}
    constants: dict[int, Any] = {}
    equations: list[Equation] = []
    call_numbers, numbers = itertools.count(), itertools.count()

    def define(aval: Any) -> int:
        avals[len(avals)] = aval
        return len(avals) - 1

    def open_up(
        body: Program,
        arguments: Sequence[Atom],
        calls: tuple[Any, ...] = (),
        sources: tuple[Any, ...] = (),
        repeats: int = 1,
        loop: int | None = None,
        places: Iterator[int] | None = None,
    ) -> list[Atom]:
        env: dict[int, Atom] = dict(zip(body.inputs, arguments, strict=True))
        for var, value in body.constants.items():
            env[var] = define(body.avals[var])
            constants[len(avals) - 1] = value

        def read(atom: Atom) -> Atom:
            return env[atom] if isinstance(atom, int) else atom

        for eqn in body.equations:
            operands = tuple(map(read, eqn.inputs))
            outer, often = (*eqn.sources, *sources), repeats * eqn.repeats
            if eqn.body is not None:
                inner = (*calls, (next(call_numbers), call_name(eqn)))
                # The calls of a loop that is opened up are its iterations.
                own = itertools.count() if places is None and loop is not None else places
                results = open_up(eqn.body, operands, inner, outer, often, loop, own)
                env.update(zip(eqn.outputs, results, strict=True))
                continue
            number = next(numbers) if loop is None else loop
            if loop is None and number in opened:
                results = open_up(opened[number], (*operands, *iteration), calls, outer, often, number)
                env.update(zip(eqn.outputs, results, strict=True))
                continue
            outputs = tuple(define(aval) for aval in eqn.out_avals)
            env.update(zip(eqn.outputs, outputs, strict=True))
            fields = eqn.primitive, eqn.bind, eqn.params, operands, outputs, eqn.in_avals, eqn.out_avals
            place = -1 if places is None else next(places)
            equations.append(Equation(*fields, calls=calls, sources=outer, number=number, place=place, repeats=often))
        return [read(atom) for atom in body.outputs]

    inputs = tuple(define(program.avals[var]) for var in program.inputs)
    iteration = (define(ITERATION),) if opened else ()
    outputs = tuple(open_up(program, inputs))
    return Program((*inputs, *iteration), outputs, tuple(_live(equations, outputs)), avals, constants)


def _live(equations: Sequence[Equation], outputs: Sequence[Atom]) -> Iterator[Equation]:
    needed = {atom for atom in outputs if isinstance(atom, int)}
    live = []
    for eqn in reversed(equations):
        if not needed.isdisjoint(eqn.outputs):
            needed.update(atom for atom in eqn.inputs if isinstance(atom, int))
            live.append(eqn)
    return reversed(live)


def key_implementation(dtype: Any) -> str:
    """Returns what makes random keys of a dtype: the name that `jax.random.key` knows it by."""
    names: list[str] = []
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), jax.ShapeDtypeStruct((), dtype))
    return names[0]


def is_array(value: Any) -> bool:
    """Tells whether a value is an array (or an abstract one), as opposed to a static argument."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def abstract(value: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array; weak types are made strong."""
    return jax.ShapeDtypeStruct(np.shape(value), jax.dtypes.canonicalize_dtype(value.dtype, allow_extended_dtype=True))


def aval_of(program: Program, atom: Atom) -> Any:
    """Returns shape and dtype of an operand or result."""
    return program.avals[atom] if isinstance(atom, int) else atom.aval


def depending(
    program: Program, variables: Iterable[int], positions: Iterable[int] | None = None
) -> list[tuple[int, Equation]]:
    """Returns the equations of a flat program that depend on some variables, with their positions, in order.

    Args:
        program: the program.
        variables: what they are to depend on, through any of the others.
        positions: the equations to look among; all by default.
    """
    reached, found = set[Atom](variables), []
    for position in range(len(program.equations)) if positions is None else sorted(positions):
        eqn = program.equations[position]
        if not reached.isdisjoint(eqn.inputs):
            found.append((position, eqn))
            reached.update(eqn.outputs)
    return found
