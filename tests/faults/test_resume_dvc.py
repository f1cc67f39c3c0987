"""`dvc repro`, stopped in the middle of a stage: no process survives, nothing looks finished, the next one resumes."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml_text
from builders.limits import patience
from builders.places import contents
from builders.projects import make_project, published, run_dvc
from builders.runs import still_alive
from builders.stopping import checkpoints, copy_code, family, make_repository, resumed, start_repro, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def make_crop(root: Path, workers: int) -> Path:
    """Three blocks of rendered scenes, downloaded, and to be cropped."""
    make_project(root)
    shutil.rmtree(root / "data")
    params = yaml_text.load((root / "params.yaml").read_text())
    params["datasets"] = {"tiny": {"source": "synthetic", "scenes": 1300, "scene_size": 96, "face_size": [50.0, 80.0]}}
    params["cluster"]["crop_workers"] = workers
    (root / "params.yaml").write_text(yaml_text.dump(params))
    copy_code(root, "plan", "download", "crop")
    run_dvc(root, "repro", "download@tiny")
    return root


@pytest.mark.parametrize(
    ("tool", "workers"),
    [("dvc", 0), *(pytest.param(tool, 2, marks=pytest.mark.ray) for tool in ("dvc", "fer"))],
)
@pytest.mark.parametrize("stage", ["train", "crop"])
def test_stopped_repro_leaves_no_process_and_no_output_and_the_next_resumes(
    stage: str, tool: str, workers: int, tmp_path: Path
) -> None:
    folder, root = tmp_path / "whole", tmp_path / "stopped"
    whole = make_repository(folder, workers=workers) if stage == "train" else make_crop(folder, workers)
    shutil.copytree(whole, root)
    run_dvc(whole, "repro")
    for signum in (signal.SIGKILL, signal.SIGTERM):
        repro = start_repro(root, tool)
        before = _work(root, stage)
        wait_until(lambda before=before: _work(root, stage) - before, repro)
        children = family(repro)
        assert children
        repro.send_signal(signum)
        repro.wait(patience(30))
        # Of Ray's own processes two agents stay for a minute or two, idle, asking for the head they have lost.
        # The host of `fer repro` waits for the stage, and then ends Ray.
        assert not [name for name in still_alive(children, 10 if tool == "dvc" else 60) if not name.endswith("Agent")]
        assert not [*root.glob("trained/**/*.*"), *root.glob("data/faces/tiny/*")], "something looks finished"
    output = run_dvc(root, "repro")
    assert {path.name for path in (root / ".work").iterdir()} <= {"plan", "raw", "locks"}, "work is left"
    if stage == "train":
        assert published(root) == published(whole)
        run_dvc(root, "repro")  # nothing has changed
    else:
        assert resumed(output)
        assert contents(root / "data" / "faces" / "tiny") == contents(whole / "data" / "faces" / "tiny")
        assert list(json.loads(run_dvc(root, "status", "--json"))) == ["plan"], "which looks for changed data each time"


def _work(root: Path, stage: str) -> set[Path]:
    return checkpoints(root) if stage == "train" else set(root.glob(".work/crop/*/faces-*.json"))
