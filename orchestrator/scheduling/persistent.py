"""A sorted map that is never changed: every change gives a new map in O(log n), and the old one stays as it was.

It lets the scheduler be a pure function of states that hold ten thousand trials. A weight-balanced binary tree (Adams
1993, "Efficient sets: a balancing act"), with the parameters that Hirai and Yamamoto (2011, "Balancing weight-balanced
trees", section 4) prove right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

DELTA: Final = 3
"""A subtree weighs at most DELTA times its sibling."""
GAMMA: Final = 2
"""Where it would weigh more, one rotation mends it if the inner grandchild weighs less than GAMMA times the outer."""

# A node is (key, value, size, left, right); the empty tree is None. Tuples, because they are what Python makes fastest.
Tree = tuple[Any, Any, int, Any, Any] | None


class SortedMap(Mapping[K, V], Generic[K, V]):
    """An immutable mapping in the order of its keys, which must be comparable with each other."""

    __slots__ = ("_tree",)

    def __init__(self, tree: Tree = None) -> None:
        self._tree = tree

    def __getitem__(self, key: K) -> V:
        tree = self._tree
        while tree is not None:
            if key == tree[0]:
                value: V = tree[1]
                return value
            tree = tree[3] if key < tree[0] else tree[4]
        raise KeyError(key)

    def __len__(self) -> int:
        return self._tree[2] if self._tree is not None else 0

    def __iter__(self) -> Iterator[K]:
        path: list[Tree] = []
        tree = self._tree
        while tree is not None or path:
            while tree is not None:
                path.append(tree)
                tree = tree[3]
            tree = path.pop()
            assert tree is not None
            yield tree[0]
            tree = tree[4]

    def __repr__(self) -> str:
        return f"SortedMap({dict(self)!r})"

    def set(self, key: K, value: V) -> SortedMap[K, V]:
        """This map with `key` at `value`."""
        return SortedMap(_set(self._tree, key, value))

    def without(self, key: K) -> SortedMap[K, V]:
        """This map without `key`; the same where it has none."""
        try:
            return SortedMap(_without(self._tree, key))
        except KeyError:
            return self

    def key_at(self, index: int) -> K | None:
        """The key at `index` from 0 in their order; None past the end."""
        tree = self._tree
        while tree is not None:
            before = tree[3][2] if tree[3] is not None else 0
            if index == before:
                key: K = tree[0]
                return key
            index, tree = (index, tree[3]) if index < before else (index - before - 1, tree[4])
        return None

    def key_from(self, bound: Any) -> K | None:
        """The first key that is not below `bound`; None where all are."""
        tree, found = self._tree, None
        while tree is not None:
            if tree[0] < bound:
                tree = tree[4]
            else:
                found, tree = tree[0], tree[3]
        return found


def _set(tree: Tree, key: Any, value: Any) -> Tree:
    if tree is None:
        return (key, value, 1, None, None)
    at, held, size, left, right = tree
    if key == at:
        return (key, value, size, left, right)
    if key < at:
        return _balanced(at, held, _set(left, key, value), right)
    return _balanced(at, held, left, _set(right, key, value))


def _without(tree: Tree, key: Any) -> Tree:
    if tree is None:
        raise KeyError(key)
    at, held, _, left, right = tree
    if key < at:
        return _balanced(at, held, _without(left, key), right)
    if key > at:
        return _balanced(at, held, left, _without(right, key))
    if left is None or right is None:
        return right if left is None else left
    least = right
    while least[3] is not None:
        least = least[3]
    return _balanced(least[0], least[1], left, _without(right, least[0]))


def _node(key: Any, value: Any, left: Tree, right: Tree) -> Tree:
    size = 1 + (left[2] if left is not None else 0) + (right[2] if right is not None else 0)
    return (key, value, size, left, right)


def _weight(tree: Tree) -> int:
    return tree[2] + 1 if tree is not None else 1


def _balanced(key: Any, value: Any, left: Tree, right: Tree) -> Tree:
    """The tree of `key` between `left` and `right`, one of which may have gained or lost one node."""
    light = left[2] + 1 if left is not None else 1  # weights, written out: this is the innermost loop of all
    heavy = right[2] + 1 if right is not None else 1
    if heavy > DELTA * light:
        assert right is not None
        return _rotated_left(key, value, left, right)
    if light > DELTA * heavy:
        assert left is not None
        return _rotated_right(key, value, left, right)
    return (key, value, light + heavy - 1, left, right)


def _rotated_left(key: Any, value: Any, left: Tree, right: tuple[Any, Any, int, Any, Any]) -> Tree:
    at, held, _, inner, outer = right
    if _weight(inner) < GAMMA * _weight(outer):
        return _node(at, held, _node(key, value, left, inner), outer)
    return _node(inner[0], inner[1], _node(key, value, left, inner[3]), _node(at, held, inner[4], outer))


def _rotated_right(key: Any, value: Any, left: tuple[Any, Any, int, Any, Any], right: Tree) -> Tree:
    at, held, _, outer, inner = left
    if _weight(inner) < GAMMA * _weight(outer):
        return _node(at, held, outer, _node(key, value, inner, right))
    return _node(inner[0], inner[1], _node(at, held, outer, inner[3]), _node(key, value, inner[4], right))
