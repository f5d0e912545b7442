"""What a driver compares with its workers."""

from __future__ import annotations

from orchestrator.scheduling.fingerprint import LIBRARIES, differences, fingerprint


def test_a_process_is_like_itself_and_names_what_matters():
    ours = fingerprint()
    assert set(ours) == {"python", "ditlaw's code", *LIBRARIES}
    assert differences(ours, fingerprint()) == ""
    assert not any("+" in value for value in ours.values()), "builds of one version count as one"


def test_every_difference_is_named():
    ours = {"python": "3.11", "torch": "2.13.0"}
    assert differences(ours, {"python": "3.12"}) == "python 3.12 against 3.11 here, torch missing against 2.13.0 here"


def test_a_driver_may_lack_what_workers_have():
    assert differences({"python": "3.11"}, {"python": "3.11", "torch": "2.13.0"}) == ""
