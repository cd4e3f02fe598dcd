"""Every error the library raises on purpose.

Each message says what was given, what was expected and what to do about it.
"""


class JasgnasError(Exception):
    """Base class of all errors raised by jasgnas."""


class ArgumentError(JasgnasError, TypeError):
    """An argument is of the wrong kind, or two arguments contradict each other."""


class NoRemovableStructureError(JasgnasError, ValueError):
    """The network has no structure that could be removed and leave a valid network."""


class DisconnectedOutputError(JasgnasError, ValueError):
    """A network output does not depend on any network input."""


class TreeMismatchError(JasgnasError, ValueError):
    """Parameters whose tree, shapes or dtypes do not match the search space."""


class TargetError(JasgnasError, ValueError):
    """A sparsity target that no valid removal can reach, or that makes no sense."""


class InvalidRemovalError(JasgnasError, ValueError):
    """Removing these groups would leave a network output unreachable."""


class NonFiniteError(JasgnasError, ValueError):
    """Parameters hold NaN or infinity."""


class VerificationError(JasgnasError, RuntimeError):
    """The sub-network does not return what the full network returns."""


class RuleError(JasgnasError, RuntimeError):
    """The rule of a primitive has failed: what says which of its entries are zero, needed and computed."""


class SavedNetworkError(JasgnasError, ValueError):
    """A folder that is not, or no longer, one that `jasgnas.save` has written, or that a newer version has."""


class ExportError(JasgnasError, RuntimeError):
    """A sub-network that JAX cannot export."""


class SourceError(JasgnasError, RuntimeError):
    """A network that cannot be written as Python source."""


class MissingPartError(JasgnasError, AttributeError, IndexError):
    """A part of the full network that its sub-network does not have."""


class NothingRemovedWarning(UserWarning):
    """A construction that removes nothing: no group is entirely zero."""


class GatesLeftWarning(UserWarning):
    """Gates that were trained stay in a sub-network as multiplications."""


class RevivedGroupsWarning(UserWarning):
    """Groups that H2SPG has set to zero are not: something changes its updates."""


class DerivativeWarning(UserWarning):
    """A network is written as source without the derivative that a function of it defines."""


class FixedSizeWarning(UserWarning):
    """A network is written as source for the sizes of its example inputs alone, not for a batch of any size."""


class OneModeWarning(UserWarning):
    """A network is written as source for the mode of its call alone, since it cannot be traced in the other one."""


class EarlySelectionWarning(UserWarning):
    """H2SPG selects before anything has been learned, or before the loss without every group has been measured."""


class BlindSelectionWarning(UserWarning):
    """H2SPG is given neither the gradient nor the loss, and selects by the norms of the parameters."""
