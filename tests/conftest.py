import os
import random

# Before jax is imported: tests run on the CPU, split into eight devices so that sharded code is really sharded.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Before other processes start, which inherit it: what the networks of test_generated.py that are new in this run are
# drawn with.
os.environ.setdefault("JASGNAS_SEED", str(random.randrange(1, 2**16)))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# No test is timed: a compilation may fall into any example.
hypothesis.settings.register_profile("jasgnas", deadline=None)
hypothesis.settings.load_profile("jasgnas")


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
