"""One rule per primitive: its zeros, its needs, its degree of homogeneity, its evaluation on sliced operands.

The analysis knows primitives only, never layers. A primitive without a rule is an unknown operator: it is never
removed, never assumed to keep zeros, and evaluated at full width.
"""

from jasgnas.rules import contraction, control, elementwise, indexing, reduction, shape  # noqa: F401 - they register rules
from jasgnas.rules.base import (
    PassThrough,
    Rule,
    degrees_of,
    execute_of,
    is_known,
    needs_of,
    register,
    rule_for,
    unknown_in,
    zeros_of,
)

__all__ = [
    "PassThrough",
    "Rule",
    "degrees_of",
    "execute_of",
    "is_known",
    "needs_of",
    "register",
    "rule_for",
    "unknown_in",
    "zeros_of",
]
