"""Of which groups only so many may stay: one operation of an edge, two inputs of a node.

A *crowd* are the groups whose paths match a pattern with the same captures. The selection thins it out by falling
score, inside `jax.jit`, as far as the network stays valid; the crowds of one pattern after those of the one before it,
so that of each node the two best edges stay where each edge has been left its best operation first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.checks import check_integer
from jasgnas.errors import ArgumentError, TargetError
from jasgnas.space.selection import accept_greedily, falling_order
from jasgnas.space.ties import Captures, PathPattern
from jasgnas.space.validity import DependenceGraph

AtMost = Mapping[str, int]
"""How many of the groups that match a pattern of paths stay at most, for each of its captures."""


@partial(jax.tree_util.register_dataclass, data_fields=("members", "limits"), meta_fields=("names",))
@dataclass(frozen=True, eq=False)
class Crowds:
    """Sets of groups of which only so many may stay.

    Attributes:
        members: bool `[num_crowds, num_groups]`.
        limits: int32 `[num_crowds]`, how many of each may stay.
        names: the pattern of each, and what its captures are.
    """

    members: np.ndarray
    limits: np.ndarray
    names: tuple[tuple[str, str], ...]

    def thin_out(
        self,
        graph: DependenceGraph,
        critical: jax.Array,
        scores: jax.Array,
        accepted: jax.Array,
        eligible: jax.Array,
        is_free: jax.Array,
    ) -> jax.Array:
        """Returns a valid set without which no crowd is too large, or as little as can be, bool `[num_groups]`.

        Groups go by falling score, those of one pattern after those of the one before it.

        Args:
            graph: what depends on what.
            critical: bool `[num_vertices]`, vertices that must not die.
            scores: float `[num_groups]`, larger is removed sooner.
            accepted: bool `[num_groups]`, groups that go in any case.
            eligible: bool `[num_groups]`, groups that may go.
            is_free: bool `[num_groups]`, groups that go where no crowd asks for it.
        """
        gone = accepted
        for own in self.by_pattern():
            is_wanted = partial(_is_wanted, own, gone, eligible, is_free)
            gone = accept_greedily(graph, critical, falling_order(scores, gone), is_wanted)
        return gone

    def by_pattern(self) -> "list[Crowds]":
        """Returns the crowds of each pattern by themselves, in the order of the patterns."""
        texts = [text for text, _ in self.names]
        chosen = (np.flatnonzero([own == each for own in texts]) for each in dict.fromkeys(texts))
        return [Crowds(self.members[own], self.limits[own], tuple(self.names[i] for i in own)) for own in chosen]

    def excess(self, gone: Any) -> Any:
        """Returns how many groups of each crowd are too many beside those gone, bool `[num_groups]`; int `[num]`.

        Of a NumPy array it is one, also while a caller is traced.
        """
        return (self.members & ~gone).sum(axis=1) - self.limits

    def is_due(self, gone: jax.Array, group: jax.Array) -> jax.Array:
        """Tells whether a group, int32, belongs to a crowd that is too large beside those gone."""
        return jnp.any(jnp.asarray(self.members)[:, group] & (self.excess(gone) > 0))

    def require_reachable(self, gone: Sequence[int]) -> None:
        """Raises a `TargetError` if of any crowd more stay than may, though as many groups are gone as can be."""
        removed = np.isin(np.arange(self.members.shape[1]), gone)
        excess = self.excess(removed)
        if np.any(excess > 0):
            worst = int(np.argmax(excess))
            name = " with ".join(filter(None, self.names[worst]))
            raise TargetError(
                f"at most {self.limits[worst]} of the groups {name} were to stay, and "
                f"{self.limits[worst] + excess[worst]} are needed for every network output to stay connected to the "
                "input and the target to be met: allow so many in at_most="
            )

    def require_within(self, name: str, value: Any, number: int) -> None:
        """Raises a `TargetError` if a target removes too few groups for no crowd to be too large.

        Args:
            name: name of the target.
            value: what was given for it.
            number: how many groups it removes.
        """
        if number < (least := self._least_removed):
            asked = {text: int(limit) for (text, _), limit in zip(self.names, self.limits, strict=True)}
            raise TargetError(
                f"{name}={value!r} removes {number} groups, and at_most={asked!r} asks for {least} at least: give a "
                "larger target, or at_most alone"
            )

    @property
    def _least_removed(self) -> int:
        """How many groups must go for no crowd to be too large, at least."""
        sizes = self.members.sum(1)
        patterns = [text for text, _ in self.names]
        excess = np.maximum(sizes - self.limits, 0)
        # Crowds of one pattern have no group in common.
        return max(int(sum(excess[i] for i, own in enumerate(patterns) if own == each)) for each in patterns)


def _is_wanted(
    crowds: Crowds, before: jax.Array, eligible: jax.Array, is_free: jax.Array, gone: jax.Array, group: jax.Array
) -> jax.Array:
    """Tells whether a group, int32, is to go beside those gone: it went before, or may and is one too many or free."""
    return before[group] | eligible[group] & (crowds.is_due(gone, group) | is_free[group])


def find_crowds(at_most: AtMost, paths: Sequence[Sequence[str]], num_groups: int) -> Crowds:
    """Returns the crowds that a user has named.

    Args:
        at_most: how many stay, by patterns of parameter paths, see `PathPattern`. A group matches if all its paths do.
        paths: the paths of each structure.
        num_groups: how many groups there are.

    Raises:
        ArgumentError: it is no such mapping, or a pattern matches no group.
    """
    if not isinstance(at_most, Mapping) or not at_most:
        raise ArgumentError(f"at_most must map patterns of parameter paths to numbers, got {at_most!r}")
    found: dict[tuple[str, Captures], list[int]] = {}
    limits = []
    for text, number in at_most.items():
        check_integer(f"at_most[{text!r}]", number, 0)
        pattern, before = PathPattern(text), len(found)
        for group, own in enumerate(paths):
            if own and (captures := pattern.captures(own)) is not None:
                found.setdefault((text, captures), []).append(group)
        if len(found) == before:
            example = next((each[0] for each in paths if each), "none")
            raise ArgumentError(
                f"at_most={{{text!r}: {number}}} matches no group, of structures and gates; a pattern must match all "
                f"paths of one. They look like {example}"
            )
        limits += [number] * (len(found) - before)
    members = np.zeros((len(found), num_groups), bool)
    for crowd, groups in enumerate(found.values()):
        members[crowd, groups] = True
    names = tuple((text, ", ".join(f"{name}={each}" for name, each in captures)) for text, captures in found)
    return Crowds(members, np.array(limits, np.int32), names)
