import itertools
import os
import random
from importlib.metadata import version

# Before jax is imported: tests run on the CPU, split into eight devices so that sharded code is really sharded. XLA
# optimises nothing, because small networks are compiled more often than they are run, and compiles each program in one
# piece, since pieces for several threads take longer in all; it has lost the last option below on the way to jax 0.12.
# What is set already is left as it is.
FLAGS = {"xla_force_host_platform_device_count": "8", "xla_cpu_parallel_codegen_split_count": "1"}
if version("jax").startswith("0.10."):
    FLAGS["xla_cpu_use_fusion_emitters"] = "false"
given = os.environ.get("XLA_FLAGS", "")
missing = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A change is not to blame for examples that nobody had drawn before it: in CI they are the same in every run.
IS_CI = bool(os.environ.get("CI"))
# Before other processes start, which inherit it: what the networks of test_generated.py that are new in this run are
# drawn with.
os.environ.setdefault("JASGNAS_SEED", "1" if IS_CI else str(random.randrange(1, 2**16)))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import pjit  # noqa: E402
from jax._src.interpreters import pxla  # noqa: E402

# No test is timed: a compilation may fall into any example.
hypothesis.settings.register_profile("jasgnas", deadline=None, derandomize=IS_CI)
hypothesis.settings.load_profile("jasgnas")

# JAX keeps up to 2048 programs as MLIR, each in a context of its own, and MLIR looks through all contexts of a process
# whenever it makes another one: with that many, small programs take twice as long to compile.
MAX_CONTEXTS = 256
compilations = itertools.count(1)


def forget_contexts(event: str, *_: float, **__: str | int) -> None:
    """Has JAX forget what it has compiled from, not what it has compiled, every now and then."""
    if event == "/jax/core/compile/backend_compile_duration" and next(compilations) % MAX_CONTEXTS == 0:
        pjit._pjit_lower.cache_clear()
        pxla._cached_lowering_to_hlo.cache_clear()


jax.monitoring.register_event_duration_secs_listener(forget_contexts)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_report_header() -> str:
    """Says how to draw the same networks again."""
    return f"generated networks: JASGNAS_SEED={os.environ['JASGNAS_SEED']}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many meanings of primitives the rules were tested on."""
    passed = {report.nodeid.partition("[") for report in terminalreporter.getreports("passed")}
    rows = {name for test, _, name in passed if test.endswith("test_what_is_claimed_to_be_zero_is_zero")}
    if rows:
        primitives = {name.partition(":")[0] for name in rows}
        terminalreporter.write_line(f"rules: {len(rows)} rows passed, meanings of {len(primitives)} primitives")
