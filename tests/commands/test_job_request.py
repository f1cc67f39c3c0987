"""`fer submit` without a cluster: the line that starts a job, a job server that fails, and code that is uploaded."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders.limits import patience
from builders.projects import REPOSITORY, RIGHT

from fer import cli
from fer.cluster import jobs as job_client
from fer.cluster.jobs import JobServer
from fer.commands import jobs, upload
from fer.commands.jobs import entrypoint, free_id, job_name, running_job, runtime_environment
from fer.commands.upload import LIST_NAME, pack, place
from fer.io.files import sha256, write_atomic, write_json


def start(command: list[str], folder: Path, digest: str, *, upload: bool = False) -> tuple[int, str]:
    """What Ray does with a job: its line in the shell, in its environment, where Ray expands variables."""
    package = folder / "code.zip" if upload else None
    variables = runtime_environment(str(folder), digest, package, None)["env_vars"]
    done = subprocess.run(
        ["/bin/sh", "-c", entrypoint(command, str(folder))],
        env=dict(os.environ) | {name: os.path.expandvars(value) for name, value in variables.items()},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_line_becomes_the_stage_in_the_folder_with_the_validated_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $HOME \\n folder"
    folder.mkdir()
    (folder / "params.yaml").write_text("seed: 0\n")
    digest = sha256(folder / "params.yaml")
    assert start(["sh", "-c", "pwd -P; exit 7"], folder, digest) == (7, f"{folder}\n")
    code, output = start(["pwd"], folder, "0" * 64)
    assert code == 1
    assert f"error: {folder}/params.yaml: not the one this job was submitted with" in output
    code, output = start(["pwd"], tmp_path / "nowhere", digest)
    assert code == 1
    assert f"error: {tmp_path}/nowhere: the head node sees no such folder" in output


def test_a_failed_upload_reports_its_own_reason_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    assert start(["false", "ran"], tmp_path, sha256(tmp_path / "params.yaml"), upload=True) == (1, "")


def test_ids_are_numbered_and_a_running_job_with_other_parameters_is_rejected() -> None:
    name = job_name("train", ["--dataset", "tiny", "--model", "a model"])
    assert name == "fer-train-tiny-a_model-"
    metadata = {"name": name, "fer.params_sha256": "1"}
    known = [
        SimpleNamespace(submission_id=f"{name}9", status="FAILED", metadata=metadata),
        SimpleNamespace(submission_id=f"{name}10", status="RUNNING", metadata=metadata),
        SimpleNamespace(submission_id=f"{name}other-30", status="RUNNING", metadata={"name": f"{name}other-"}),
    ]
    assert free_id(name, known) == f"{name}11"
    assert free_id(name, []) == f"{name}1"
    assert running_job(known, name, metadata) == f"{name}10"
    assert running_job(known[:1], name, metadata) is None
    with pytest.raises(ValueError, match=f"ray job stop {name}10"):
        running_job(known, name, metadata | {"fer.params_sha256": "2"})


def test_what_is_uploaded_is_code_and_below_two_megabytes(tmp_path: Path) -> None:
    project = tmp_path / "project"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True)
    for name in tracked.stdout.decode().split("\0")[:-1]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, project / name)
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    made = [line.strip("/") for line in ignored if line.startswith("/") or line.endswith("/")]
    for name in made:
        (project / name).mkdir(parents=True)
        (project / name / "large.txt").touch()
    secrets = [".env", "infra/mlflow/.env", "credentials.env", ".env.local", ".git/config", ".dvc/config.local"]
    for name in secrets:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).touch()
    package = pack(project, tmp_path / "code.zip")
    with zipfile.ZipFile(package) as archive:
        sent = set(archive.namelist())
    assert {"fer/cli.py", "pipelines/train.py", "params.yaml", "dvc.yaml", ".dvc/config"} <= sent
    assert not sent & set(secrets)
    assert [name for name in made if f"{name}/large.txt" in sent] == ["tuned"], "params.yaml may name a recipe there"
    assert package.stat().st_size < 2_000_000
    assert pack(project, tmp_path / "again.zip").read_bytes() == package.read_bytes()


def test_an_upload_that_holds_data_is_refused_by_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_LARGEST", 2**20)
    (tmp_path / "faces.npy").write_bytes(bytes(2**20 + 1))
    with pytest.raises(ValueError, match=r"faces\.npy: with it the upload has more than 1 MiB"):
        pack(tmp_path, tmp_path.parent / "code.zip")


class Client:
    """A client of Ray's job server, which knows the job after some requests to stop it, or never."""

    def __init__(self, unknown: float) -> None:
        self.unknown, self.stopped = unknown, False

    def stop_job(self, submission: str) -> None:
        self.unknown -= 1
        if self.unknown >= 0:
            raise RuntimeError(f"Job {submission} does not exist")
        self.stopped = True

    def get_job_info(self, submission: str) -> Any:
        if self.unknown >= 0:
            raise ConnectionError("refused")
        return SimpleNamespace(status="STOPPED" if self.stopped else "RUNNING", driver_exit_code=None)

    async def tail_job_logs(self, submission: str) -> Any:
        from aiohttp import ClientError

        yield "a line\n"
        raise ClientError("no websocket here")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    import ray.exceptions  # noqa: F401 - takes seconds, which a server that is connected has behind it

    monkeypatch.setattr(job_client, "UNKNOWN_SECONDS", 2.0)
    return JobServer.__new__(JobServer)  # without a connection


def test_a_job_that_arrives_while_its_submission_is_interrupted_is_stopped_too(server: JobServer) -> None:
    server._client = Client(unknown=2)
    server.stop("fer-train-1")
    assert server._client.stopped


def test_a_job_that_cannot_be_stopped_is_reported_without_an_exception(
    server: JobServer, caplog: pytest.LogCaptureFixture
) -> None:
    server._client = Client(unknown=float("inf"))
    server.stop("fer-train-1")
    assert "fer-train-1: not seen to stop" in caplog.text
    assert "does not exist" in caplog.text


def test_a_cluster_that_is_lost_while_a_job_is_followed_leaves_a_hint(
    server: JobServer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    server._client = Client(unknown=float("inf"))
    with pytest.raises(ValueError, match="fer-train-1 may still run; the same command follows it again"):
        server.follow("fer-train-1")
    assert capsys.readouterr().out == "a line\n"
    assert "no websocket here" in caplog.text


class Cluster(Client):
    """One that takes a job while its user interrupts."""

    def __init__(self) -> None:
        super().__init__(unknown=0)
        self.taken: dict[str, Any] = {}

    def list_jobs(self) -> list[Any]:
        return []

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, **job: Any) -> str:
        self.taken = job
        raise KeyboardInterrupt


def test_an_interruption_while_the_job_is_submitted_stops_the_job(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    server._client = Cluster()
    monkeypatch.setattr(jobs, "JobServer", lambda address: server)
    with pytest.raises(KeyboardInterrupt):
        jobs.submit("train", ["--dataset", "tiny", "--model", "toy"], "http://head:8265", root=tmp_path)
    taken = server._client.taken
    assert taken["submission_id"] == "fer-train-tiny-toy-1"
    assert taken["entrypoint"].endswith(f" {tmp_path} python -m pipelines.train --dataset tiny --model toy")
    assert taken["runtime_env"]["env_vars"]["PYTHONPATH"] == str(tmp_path)
    assert taken["metadata"]["fer.project_dir"] == str(tmp_path)
    assert server._client.stopped


@pytest.mark.parametrize(
    ("line", "words", "command"),
    [
        ("train --dataset toy --address http://h:1 --model nano", "--dataset toy --model nano", "pipelines.train"),
        ("--address http://h:1 repro", "", "dvc repro"),
        ("tune --dataset toy --upload --project-dir /p --model nano --trials 3 --address http://h:1",
         "--dataset toy --model nano --trials 3", "fer tune"),
        ("study noise --seeds 0 1 --address http://h:1 --detach", "noise --seeds 0 1", "fer study"),
        ("reproduce ddamfn --tables 5 --address http://h:1", "ddamfn --tables 5", "fer reproduce"),
    ],
)  # fmt: skip
def test_a_stage_gets_its_own_options_and_none_of_the_jobs(
    line: str, words: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(RIGHT)
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(jobs, "submit", lambda *what, **options: asked.append((what, options)) or 0)
    assert cli._main(["submit", *line.split()]) == 0
    ((stage, own, address), options) = asked[0]
    assert (own, address) == (words.split(), "http://h:1")
    assert options["python"] == "python"
    assert options["target"] == ("train@toy-nano" if stage == "train" else "")
    assert " ".join(jobs.stage_command(stage, own, "python")) == f"python -m {command} {words}".strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --model nano", "submit train: --dataset is missing; known: toy"),
        ("train --dataset toy", "submit train: --model is missing; known: nano"),
        ("study", "submit study: the name is missing"),
        ("study noize", "did you mean 'noise'"),
        ("reproduce ddanfn", "did you mean 'ddamfn'"),
        ("tune --dataset toi --model nano", "did you mean 'toy'"),
    ],
)
def test_what_a_job_would_refuse_is_refused_before_it_is_submitted(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(RIGHT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        cli._main(["submit", *line.split()])


# ------------------------------------------------------------------------------------------------ uploaded code


def test_uploaded_code_is_updated_and_other_files_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.py").write_text("1")
    (source / "b.py").write_text("1")
    assert place(source, target) == 2
    (target / "results.txt").write_text("mine")
    (source / "a.py").unlink()
    (source / "b.py").write_text("2")
    assert place(source, target) == 1
    assert place(source, target) == 0
    assert {path.name: path.read_text() for path in target.iterdir() if path.is_file() and path.name != LIST_NAME} == {
        "b.py": "2",
        "results.txt": "mine",
    }


def test_what_was_changed_on_the_cluster_is_neither_replaced_nor_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("tuned/a.yaml", "tuned/b.yaml", "net.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("old")
    place(source, target)
    for name in ("tuned/a.yaml", "tuned/b.yaml"):
        (target / name).write_text("found by a search there")
    (source / "tuned" / "b.yaml").unlink()
    assert place(source, target) == 0
    assert [(target / "tuned" / name).read_text() for name in ("a.yaml", "b.yaml")] == ["found by a search there"] * 2
    assert caplog.text.count("was changed there, and stays as it is") == 2
    (target / "net.py").write_text("edited there")
    (source / "net.py").write_text("edited here")
    (source / "new.py").write_text("new")
    with pytest.raises(ValueError, match=r"target/net\.py: was changed there, .*remove it there"):
        place(source, target)
    assert (target / "net.py").read_text() == "edited there"
    assert not (target / "new.py").exists()


def test_a_killed_upload_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("a.py", "b.py"):
        (source / name).write_text("1")
    place(source, target)
    for name in ("a.py", "b.py"):
        (source / name).write_text("2")
    written: list[Path] = []

    def dies(path: Path, data: bytes | str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_atomic(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(upload, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            place(source, target)
    assert [path.name for path in written] == ["a.py"]
    (source / "a.py").write_text("3")
    assert place(source, target) == 2


def test_dvc_takes_a_folder_of_uploaded_code_for_a_project(tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(REPOSITORY, tmp_path / "code.zip")) as archive:
        archive.extractall(tmp_path / "source")
    place(tmp_path / "source", tmp_path / "target")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--dry", "plan"],
        cwd=tmp_path / "target", capture_output=True, text=True, timeout=patience(60), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Running stage 'plan'" in done.stdout
    assert place(tmp_path / "source", tmp_path / "target") == 0


@pytest.mark.parametrize("name", ["../precious", "/precious", "link/precious"])
def test_a_list_that_names_a_file_outside_removes_nothing(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (tmp_path / "precious").write_text("mine")
    (target / "link").symlink_to(tmp_path)
    write_json(target / LIST_NAME, [str(tmp_path / "precious") if name.startswith("/") else name])
    with pytest.raises(ValueError, match="outside"):
        place(source, target)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_folder_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine: .*files of no upload"):
        place(tmp_path, tmp_path / "mine")
