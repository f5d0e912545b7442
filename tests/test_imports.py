"""The rooms and the doors between them: imports point one way, and heavy libraries stay in their files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

FILES = [path for room in ("orchestrator", "models", "analysis") for path in Path(room).rglob("*.py")]

ALLOWED = {
    "models": set(),
    "analysis": {"orchestrator.results"},
    "orchestrator.spec": {"models.config", "models.configs", "models.cost", "models.fid.catalog"},
    "orchestrator.faults": {"orchestrator.planning", "orchestrator.results"},
    "orchestrator.results": {"orchestrator.faults.points"},
    "orchestrator.planning": {
        "orchestrator.spec",
        "models.config",
        "models.configs",
        "models.cost",
        "models.fid.catalog",
    },
    "orchestrator.tracking": {"orchestrator.results"},
    "orchestrator.training": {
        "models",
        "orchestrator.tracking",
        "orchestrator.results",
        "orchestrator.spec",
        "orchestrator.faults.points",
    },
    "orchestrator.scheduling": {
        "orchestrator.planning",
        "orchestrator.spec",
        "orchestrator.results",
        "orchestrator.faults.points",
    },
}
# The messages between driver and worker are declared where the driver is.
MESSAGES = "orchestrator.scheduling.backend"
ONLY_IN = {
    "deepspeed": {"orchestrator/training/engine.py"},
    "mlflow": {"orchestrator/tracking/mlflow_tracker.py"},
    "ray": {
        "orchestrator/scheduling/ray_backend.py",
        "orchestrator/scheduling/ray_board.py",
        "orchestrator/scheduling/ray_member.py",
        "orchestrator/scheduling/ray_nodes.py",
        "orchestrator/scheduling/submission.py",
        "orchestrator/faults/rig.py",
    },
}


@cache
def nodes(path: Path) -> Sequence[ast.AST]:
    """The imports and calls of a file."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call)
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def imports(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def test_imports_point_one_way():
    wrong = []
    for path in FILES:
        own = ".".join(path.with_suffix("").parts)
        room = next((room for room in ALLOWED if within(own, {room})), None)
        if room is None:
            continue  # the composition root: cli/ and what it shows
        for module in imports(path):
            if module.split(".")[0] not in ("orchestrator", "models", "analysis") or within(module, {room, MESSAGES}):
                continue
            if module in ("models", "orchestrator", "orchestrator.faults"):
                continue  # "from models import config" also yields models.config
            if not within(module, ALLOWED[room]):
                wrong.append(f"{path} imports {module}")
    assert not wrong


def test_heavy_libraries_stay_in_their_files():
    for library, files in ONLY_IN.items():
        users = {path.as_posix() for path in FILES if any(within(module, {library}) for module in imports(path))}
        found = {user for user in users if not user.startswith("orchestrator/bench/")}  # where peers are measured
        assert found == files, library


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [
            node.lineno
            for node in nodes(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        assert not calls, path


def last_word(function: ast.expr) -> str:
    """Of what is called, as `load` of `torch.load`; empty where it has no name."""
    return getattr(function, "id", "") or getattr(function, "attr", "")


def test_nothing_that_is_read_is_executed():
    """Specs, checkpoints and results are data: no pickles, no YAML that makes objects, no text taken for code."""
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    forbidden |= {
        "marshal.loads",
        "shelve.open",
        "np.load",
        "numpy.load",
        "pd.read_pickle",
        "joblib.load",
        "torch.load",
    }
    last_words = {name.rpartition(".")[2] for name in forbidden}
    wrong = []
    for path in FILES:
        for node in nodes(path):
            if not isinstance(node, ast.Call) or last_word(node.func) not in last_words:
                continue
            if (name := ast.unparse(node.func)) not in forbidden:
                continue
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            safe = {"torch.load": options.get("weights_only") == "True"}
            safe |= dict.fromkeys(("np.load", "numpy.load"), options.get("allow_pickle", "False") == "False")
            if not safe.get(name, False):
                wrong.append(f"{path}:{node.lineno} calls {name}")
    assert not wrong
