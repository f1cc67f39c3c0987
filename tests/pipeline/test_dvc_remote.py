"""Results in a DVC remote on S3: a fresh clone pulls them, and runs nothing again."""

import subprocess
from pathlib import Path

import pytest
from builders.places import contents
from builders.store import s3_server
from dvc_project import NANO, SMALL, Project, small_clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@localhost"]
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def test_what_was_pushed_is_pulled_by_a_fresh_clone_where_nothing_runs_again(tmp_path: Path) -> None:
    pytest.importorskip("dvc_s3", reason="needs the extra `s3`")
    first = small_clone(
        tmp_path / "first", {"small": SMALL}, {"first": NANO}, {"datasets": ["small"], "models": ["first"]}
    )
    first.set("tracking.enabled", False)
    with s3_server() as store:
        first.dvc("remote", "add", "--default", "store", f"{store.url}/dvc")
        assert "train@small-first" in first.repro()
        first.dvc("push")
        git(first.root, "add", "--all")
        git(first.root, "commit", "--quiet", "--message", "results")
        for name, commands in (("pulled", [["pull"], ["repro"]]), ("repro", [["repro", "--pull"]])):
            git(tmp_path, "clone", "--quiet", str(first.root), name)
            fresh = Project(tmp_path / name)
            assert not (fresh.root / "trained" / "small").exists()
            assert [stage for command in commands for stage in fresh.started(fresh.dvc(*command))] == ["plan"]
            for folder in ("data/shards/small", "trained/small/first", "evaluated/small/first"):
                assert contents(fresh.root / folder) == contents(first.root / folder), folder
