"""Automatic erasing of network structures in JAX: ASGNAS / OTOv3 (arXiv 2305.18030, arXiv 2312.09411).

space = jasgnas.search_space(model, x)
tx = optax.chain(optax.sgd(lr), jasgnas.h2spg(space, learning_rate=lr, target_groups=3, ...))
subnet = jasgnas.construct_subnet(space, model)
"""

from jasgnas.bridge.counting import count_macs, count_params
from jasgnas.bridge.value_fn import nnx_value_fn
from jasgnas.errors import (
    ArgumentError,
    BlindSelectionWarning,
    DerivativeWarning,
    DisconnectedOutputError,
    EarlySelectionWarning,
    ExportError,
    FixedSizeWarning,
    GatesLeftWarning,
    InvalidRemovalError,
    JasgnasError,
    MissingPartError,
    NonFiniteError,
    NoRemovableStructureError,
    NothingRemovedWarning,
    OneModeWarning,
    RevivedGroupsWarning,
    RuleError,
    SavedNetworkError,
    SourceError,
    TargetError,
    TreeMismatchError,
    VerificationError,
)
from jasgnas.gates.gated import gated
from jasgnas.optimizer.h2spg import ADAM_DEFAULTS, h2spg
from jasgnas.optimizer.scores import GroupStats
from jasgnas.optimizer.scoring import score_groups, select_groups
from jasgnas.optimizer.state import H2SPGState, h2spg_metrics, h2spg_state
from jasgnas.pages import Run, compare, draw, report
from jasgnas.saved.load import load
from jasgnas.saved.save import save
from jasgnas.source.to_source import to_source
from jasgnas.space.groups import Group, LeafSlice
from jasgnas.space.latency import LatencyTable
from jasgnas.space.search import SearchSpace, search_space
from jasgnas.subnet.construct import construct_subnet
from jasgnas.subnet.latency import measure_latency
from jasgnas.subnet.recalibrate import recalibrate
from jasgnas.subnet.shrink import shrink

__version__ = "0.1.0"  # the one place: the build reads it from here

__all__ = [
    "ADAM_DEFAULTS",
    "ArgumentError",
    "BlindSelectionWarning",
    "DerivativeWarning",
    "DisconnectedOutputError",
    "EarlySelectionWarning",
    "ExportError",
    "FixedSizeWarning",
    "GatesLeftWarning",
    "Group",
    "GroupStats",
    "H2SPGState",
    "InvalidRemovalError",
    "JasgnasError",
    "LatencyTable",
    "LeafSlice",
    "MissingPartError",
    "NoRemovableStructureError",
    "NonFiniteError",
    "NothingRemovedWarning",
    "OneModeWarning",
    "RevivedGroupsWarning",
    "RuleError",
    "Run",
    "SavedNetworkError",
    "SearchSpace",
    "SourceError",
    "TargetError",
    "TreeMismatchError",
    "VerificationError",
    "__version__",
    "compare",
    "construct_subnet",
    "count_macs",
    "count_params",
    "draw",
    "gated",
    "h2spg",
    "h2spg_metrics",
    "h2spg_state",
    "load",
    "measure_latency",
    "nnx_value_fn",
    "recalibrate",
    "report",
    "save",
    "score_groups",
    "search_space",
    "select_groups",
    "shrink",
    "to_source",
]
