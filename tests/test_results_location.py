"""Object storage behaves as a folder does, as far as results need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import ObjectPath, entries, location


def test_a_uri_is_object_storage_and_anything_else_a_path(tmp_path: Path) -> None:
    assert location("results/a") == Path("results/a")
    assert location("file:///tmp/a") == Path("/tmp/a")
    assert location(tmp_path) is tmp_path
    place = location("s3://bucket/prefix/")
    assert str(place) == "s3://bucket/prefix"
    assert str(place / "plan.json") == "s3://bucket/prefix/plan.json"
    assert (place.name, str(place.parent), str(place.parent.parent)) == ("prefix", "s3://bucket", "s3://bucket")


@pytest.mark.parametrize("text", ["s3://", "s3://bucket/../other", "s3://bucket//a", "s3://bucket/a?x=1", "s3://b/a b"])
def test_a_uri_that_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a place; wanted s3://BUCKET or s3://BUCKET/PREFIX"):
        location(text)


def test_a_scheme_that_nothing_opens_is_named() -> None:
    with pytest.raises(ValueError, match="nothing here opens nonsense://"):
        location("nonsense://bucket/a").exists()


@pytest.mark.parametrize("uri", ["s3", "memory"])
def test_objects_come_and_go(uri: str, request: pytest.FixtureRequest) -> None:
    root = location(f"{request.getfixturevalue('s3')}/sweep" if uri == "s3" else "memory://bucket/sweep")
    assert isinstance(root, ObjectPath)
    assert not root.exists()
    with pytest.raises(FileNotFoundError):
        entries(root)
    with pytest.raises(FileNotFoundError):
        (root / "a").read_bytes()
    write_bytes(root / "a", b"1")
    write_bytes(root / "a", b"22")
    write_bytes(root / "b" / "c", b"3")
    assert (root / "a").read_text() == "22"
    assert (root / "a").stat().st_size == 2
    assert root.is_dir()
    assert not root.is_file()
    assert (root / "b").is_dir()
    assert [path.name for path in entries(root)] == ["a", "b"]
    assert [str(path) for path in root.files_below()] == [f"{root}/a", f"{root}/b/c"]
    (root / "a").unlink()
    (root / "a").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (root / "a").unlink()
    (root / "b").remove_tree()
    assert root.files_below() == []
