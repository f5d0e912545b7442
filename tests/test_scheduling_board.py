"""The board on which drivers of a cluster tell each other what they hold and lack; its store is a dictionary here."""

from __future__ import annotations

import json

import pytest

from orchestrator.scheduling.backend import Claim, GangShape, NeighboursHeard, Node
from orchestrator.scheduling.ray_board import FORGET_SECONDS, PREFIX, SILENT_SECONDS, TELL_SECONDS, Board


class Head:
    """Keeps entries as Ray's head does, and a clock."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.now, self.down, self.puts = 0.0, False, 0

    def clock(self) -> float:
        return self.now

    def _answer(self) -> None:
        if self.down:
            raise RuntimeError("the head is down")

    def _internal_kv_put(self, key, value, overwrite, namespace) -> None:
        self._answer()
        self.puts += 1
        self.entries[key] = value

    def _internal_kv_get(self, key, namespace) -> bytes | None:
        return self.entries.get(key)

    def _internal_kv_list(self, prefix, namespace) -> list[bytes]:
        self._answer()
        return [key for key in self.entries if key.startswith(prefix)]

    def _internal_kv_del(self, key, namespace) -> None:
        self._answer()
        self.entries.pop(key, None)


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
def boards(head) -> tuple[Board, Board]:
    return Board("one", head, head.clock), Board("two", head, head.clock)


def claim(board: Board, priority: int = 0) -> Claim:
    lacks = GangShape(workers=2, cpus_per_worker=1, gpus_per_worker=0.5)
    return Claim(driver=board.name, sweep="s", priority=priority, held=(Node(name="n", cpus=2.0),), lacks=lacks)


def look(head: Head, board: Board, after: float = TELL_SECONDS) -> list[NeighboursHeard]:
    head.now += after
    return board.look()


def test_what_one_tells_the_other_hears_once_and_nobody_hears_himself(head, boards):
    one, two = boards
    one.tell(claim(one, 3))
    assert look(head, two) == [NeighboursHeard(claims=(claim(one, 3),))]
    one.tell(claim(one, 3))
    assert look(head, two) == look(head, one) == []
    one.tell(claim(one, 4))
    assert look(head, two) == [NeighboursHeard(claims=(claim(one, 4),))]


def test_news_are_told_at_once_and_the_rest_once_a_second(head, boards):
    one, _ = boards
    for _ in range(5):
        one.tell(claim(one))
    assert head.puts == 1
    one.tell(claim(one, 1))
    head.now += TELL_SECONDS
    one.tell(claim(one, 1))
    assert head.puts == 3


def test_one_that_falls_silent_counts_no_more_until_it_speaks_again(head, boards):
    one, two = boards
    one.tell(claim(one))
    assert look(head, two)
    assert look(head, two, SILENT_SECONDS + 1) == [NeighboursHeard(claims=())]
    one.tell(claim(one))
    assert look(head, two) == [NeighboursHeard(claims=(claim(one),))]
    look(head, two, FORGET_SECONDS + 1)
    assert head.entries == {}


def test_one_that_leaves_takes_its_entry_down(head, boards):
    one, two = boards
    one.tell(claim(one))
    look(head, two)
    one.close()
    assert look(head, two) == [NeighboursHeard(claims=())]


def test_a_head_that_does_not_answer_or_has_forgotten_is_survived(head, boards, caplog):
    one, two = boards
    one.tell(claim(one))
    look(head, two)
    head.down = True
    one.tell(claim(one, 1))
    assert look(head, two) == []
    one.close()
    assert "the head of the Ray cluster does not answer: the head is down" in caplog.text
    head.down, head.entries = False, {}
    assert look(head, two) == [NeighboursHeard(claims=())]


@pytest.mark.parametrize("entry", [b"", b"\xff", b"[]", b"{}", json.dumps({"driver": 1, "held": 3}).encode()])
def test_what_cannot_be_understood_is_left_alone(head, boards, entry):
    head.entries[PREFIX + b"stranger"] = entry
    assert look(head, boards[0]) == []
