"""What a driver makes of its nodes' answers, whatever they are. A stand-in for Ray gives them."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.scheduling import ray_nodes
from orchestrator.scheduling.fingerprint import fingerprint

OURS = fingerprint()


class FakeRay:
    """Nodes by name, with what each answers: an exception is raised. Nodes named `gone` die as they are asked."""

    exceptions = ray_nodes.ray.exceptions

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, False

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Alive": not (self.asked and name == "gone")}
            for name in self.answers
        ]

    def wait(self, references: list[str], **options: object) -> tuple[list[str], list[str]]:
        self.asked = True
        return references, []

    def get(self, reference: str) -> Any:
        answer = self.answers[reference]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def check(monkeypatch):
    def check(**answers: Any) -> None:
        monkeypatch.setattr(ray_nodes, "ray", FakeRay(**answers))
        monkeypatch.setattr(ray_nodes, "_ask", lambda name: name)
        ray_nodes.check_code()

    return check


def test_a_node_that_cannot_run_the_code_is_refused_with_the_others(check):
    broken = ModuleNotFoundError("No module named 'torch'")
    with pytest.raises(ValueError, match="nodes of the cluster would not run") as refused:
        check(a=OURS, b=broken, c={**OURS, "python": "3.9"}, d=RuntimeError())
    assert "host-b cannot run this code (ModuleNotFoundError: No module named 'torch')" in str(refused.value)
    assert "host-c has python 3.9 against" in str(refused.value)
    assert "host-d cannot run this code (RuntimeError: no message)" in str(refused.value)
    assert "host-a" not in str(refused.value)


def test_a_node_that_goes_meanwhile_is_nobody_s_fault(check):
    check(a=OURS, gone=RuntimeError("the node died"))
