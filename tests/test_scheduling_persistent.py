"""The persistent sorted map against a dict, and its balance."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.persistent import DELTA, SortedMap


def is_balanced(tree: tuple | None) -> bool:
    if tree is None:
        return True
    _, _, size, left, right = tree
    weights = [1 + (side[2] if side else 0) for side in (left, right)]
    fits = sum(weights) == 2 or max(weights) <= DELTA * min(weights)
    return fits and size == sum(weights) - 1 and is_balanced(left) and is_balanced(right)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60))), st.integers(-1, 61))
@settings(max_examples=300)
def test_it_is_a_sorted_dict_that_never_changes(changes, bound):
    now, wanted = SortedMap(), {}
    versions = [(now, {})]
    for index, (put, key) in enumerate(changes):
        if put:
            now, wanted = now.set(key, index), {**wanted, key: index}
        else:
            now, wanted = now.without(key), {k: v for k, v in wanted.items() if k != key}
        versions.append((now, wanted))
        assert is_balanced(now._tree)
    for version, contents in versions:
        assert list(version.items()) == sorted(contents.items())
        assert len(version) == len(contents)
        assert [version.key_at(index) for index in range(len(contents) + 1)] == [*sorted(contents), None]
        assert version.key_from(bound) == min((key for key in contents if key >= bound), default=None)


def test_ascending_and_descending_keys_leave_it_flat():
    for keys in (range(1000), range(1000, 0, -1)):
        now = SortedMap()
        for key in keys:
            now = now.set(key, None)
        assert is_balanced(now._tree)
        assert list(now) == sorted(keys)
