"""What is said when a rule fails, and of operators without a rule: the primitive, and the line of the user's code."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from jax.extend.core import Primitive
from jax.interpreters import mlir

import jasgnas
from jasgnas import rules
from jasgnas.program.jaxpr import inline, trace
from jasgnas.rules.elementwise import KeepsZeros

X = jnp.ones((2, 3))
PARAMS = {"branch": jnp.full((3, 3), 0.5), "skip": jnp.full((3, 3), 0.25)}


def _primitive(impl=jnp.sin) -> Primitive:
    primitive = Primitive("of_a_user")
    primitive.def_impl(impl)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(jnp.sin, multiple_results=False))
    return primitive


def _network(operator):
    def fn(params, x):
        return x @ params["skip"] + operator(x @ params["branch"])

    return fn


def _line(fn, offset=1):
    """Returns how a line of a function is named; the first line below its head by default."""
    return f"{__file__}:{inspect.getsourcelines(fn)[1] + offset}:"


class _Failing(KeepsZeros):
    """Fails at one of its questions."""

    def __init__(self, question, error):
        super().__init__()
        self._question = question
        self._error = error

    def _ask(self, question):
        if question == self._question:
            raise self._error

    def zeros(self, eqn, operands):
        self._ask("zeros")
        return super().zeros(eqn, operands)

    def needs(self, eqn, operands, results):
        self._ask("needs")
        return super().needs(eqn, operands, results)

    def execute(self, eqn, operands, layouts):
        self._ask("execute")
        return super().execute(eqn, operands, layouts)


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(rules.base, "_RULES", dict(rules.base._RULES))
    return rules.register


def _run(fn):
    space = jasgnas.search_space(fn, X, params=PARAMS)
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(PARAMS, [0]))
    return sub_fn(sub_params, X)


@pytest.mark.parametrize("question", ["zeros", "needs", "execute"])
def test_a_failing_rule_is_named_with_the_primitive_and_the_line_of_the_user(register, question):
    register(_Failing(question, KeyError("axes")), "of_a_user")
    fn = _network(_primitive().bind)
    with pytest.raises(jasgnas.RuleError) as caught:
        _run(fn)
    message = str(caught.value)
    assert f"the rule {__name__}._Failing of the primitive of_a_user at {_line(fn)}" in message
    assert f"({fn.__qualname__}) failed: KeyError: 'axes'. If you have registered this rule, mend it" in message
    assert caught.value.__cause__.args == ("axes",)


@pytest.mark.parametrize("question", ["zeros", "needs", "execute"])
def test_an_error_that_a_rule_raises_on_purpose_passes_as_it_is(register, question):
    register(_Failing(question, jasgnas.ArgumentError("as it is")), "of_a_user")
    with pytest.raises(jasgnas.ArgumentError, match="^as it is"):
        _run(_network(_primitive().bind))


@pytest.mark.parametrize("is_known", [True, False])
def test_an_error_of_the_operator_itself_is_not_taken_for_one_of_its_rule(register, is_known):
    def impl(x):
        raise OSError("the disk is full")

    if is_known:
        register(KeepsZeros(), "of_a_user")
    with pytest.raises(OSError, match=r"^the disk is full$"):
        _run(_network(_primitive(impl).bind))


def test_arrays_on_different_devices_are_refused_as_by_the_full_network():
    here, there = jax.devices()[:2]
    fn = _network(jnp.tanh)
    space = jasgnas.search_space(fn, X, params=PARAMS)
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(PARAMS, [0]))
    with pytest.raises(ValueError, match="incompatible devices"):
        sub_fn(jax.device_put(sub_params, here), jax.device_put(X, there))


def test_a_rule_that_computes_with_wrong_shapes_is_named(register):
    class Halving(KeepsZeros):
        def execute(self, eqn, operands, layouts):
            return super().execute(eqn, [value._replace(array=value.array @ X) for value in operands], layouts)

    register(Halving(), "of_a_user")
    with pytest.raises(jasgnas.RuleError, match=r"Halving of the primitive of_a_user at .*: TypeError: dot_general"):
        _run(_network(_primitive().bind))


def test_a_rule_that_fails_in_a_function_of_jax_is_named_with_the_call(register):
    register(_Failing("execute", KeyError("axes")), "max")
    fn = _network(jax.nn.relu)
    with pytest.raises(jasgnas.RuleError, match="primitive max failed") as caught:
        _run(fn)
    assert f"in a call of relu at {_line(fn)}" in "\n".join(caught.value.__notes__)


def test_unknown_operators_are_named_with_every_line_they_stand_on():
    primitive = _primitive()

    def fn(params, x):
        x = x @ params["skip"] + primitive.bind(x @ params["branch"])
        for _ in range(2):
            x = x + primitive.bind(x)
        return x

    space = jasgnas.search_space(fn, X, params=PARAMS)
    first, second = (re.escape(f"of_a_user at {_line(fn, offset)}") + r"\d+ \(.*fn\)" for offset in (1, 3))
    assert re.search(f"Unknown operators, kept as they are: {first}, {second}\\.$", str(space))
    assert re.search(f"it contains the unknown operator {first}$", space.explain("branch"))


def _places(fn, *args):
    return {eqn.primitive: eqn.where for eqn in inline(trace(fn, *args)).equations}


def test_what_a_layer_computes_is_on_the_line_of_the_model():
    class Network(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.dense(x)

    class LinenNetwork(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x)

    variables = LinenNetwork().init(jax.random.key(0), X)
    for fn, network in ((Network(), Network), (lambda x: LinenNetwork().apply(variables, x), LinenNetwork)):
        call = network.__call__
        line = inspect.getsourcelines(inspect.unwrap(call))[1] + (1 if network is Network else 2)
        assert _places(fn, X)["dot_general"].startswith(f"{__file__}:{line}:")


def test_what_a_function_of_jax_computes_is_on_the_line_of_each_call():
    def fn(x):
        a = jax.nn.relu(x)
        return a, jax.nn.relu(x + 1)

    lines = [eqn.where for eqn in inline(trace(fn, X)).equations if eqn.primitive == "max"]
    assert [line.startswith(_line(fn, offset)) for line, offset in zip(lines, (1, 2), strict=True)] == [True, True]


def test_a_layer_of_a_scanned_stack_is_on_the_line_of_its_body():
    def fn(params, x):
        return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), x, params)[0]

    params = jnp.ones((2, 3, 3))
    space = jasgnas.search_space(fn, X, params=params)
    eqns = space.graph.program.equations
    assert len([eqn for eqn in eqns if eqn.primitive == "dot_general"]) == 2
    assert all(eqn.where.startswith(_line(fn)) for eqn in eqns)
