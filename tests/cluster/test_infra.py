"""The files under infra/: readable, of the shape their tools want, explained, without secrets."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
import yaml_text

from fer.commands.jobs import EXCLUDES

INFRA = Path(__file__).resolve().parents[2] / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.name not in (".gitignore", ".env"))
KUBERAY = ("raycluster.yaml", "rayjob-train.yaml")


def _schema(test_data: Path, kind: str) -> Any:
    """Of version v1, unknown keys refused. By the parser in C: the file is large."""
    text = (test_data / "schemas" / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    (version,) = [one for one in versions if one["name"] == "v1"]
    return _closed(version["schema"]["openAPIV3Schema"])


def _documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml_text.load_all(path.read_text(encoding="utf-8")) if one]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_file_says_what_it_is_how_to_use_it_and_what_to_expect(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(head)
    assert "What:" in text
    assert re.search(r"Command:|Build \(", text)
    assert "Expect:" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_no_file_holds_a_secret_or_a_path_of_one_persons_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[0-9a-f]{32,}|BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}", text)
    for found in re.finditer(r"(?i)(password|token)\w*[ \t]*[=:][ \t]*(\S+)", text):
        assert found[2].startswith(("$", '"$', "...", "postgresql", "token")), found[0]
    assert not re.search(r"/(root|work|Users)/", text)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".yaml"], ids=lambda path: path.name)
def test_yaml_parses_and_is_not_empty(path: Path) -> None:
    assert _documents(path)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix in (".sh", ".sbatch")], ids=lambda path: path.name
)
def test_shell_scripts_parse(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", KUBERAY)
def test_manifests_follow_kuberays_own_schema(name: str, test_data: Path) -> None:
    for document in _documents(INFRA / "kuberay" / name):
        assert document["apiVersion"] == "ray.io/v1"
        jsonschema.Draft7Validator(_schema(test_data, document["kind"])).validate(document)


def _closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as `kubectl --validate=strict` does; Kubernetes' own marks are honoured."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    closed = {
        key: _closed(value) if key in ("items", "additionalProperties") else value for key, value in schema.items()
    }
    if "properties" in schema:
        closed["properties"] = {key: _closed(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
    return closed


def test_a_misspelt_key_in_a_manifest_would_be_noticed(test_data: Path) -> None:
    (job,) = _documents(INFRA / "kuberay" / "rayjob-train.yaml")
    job["spec"]["shutdownAfterJobFinish"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.Draft7Validator(_schema(test_data, "RayJob")).validate(job)


@pytest.mark.parametrize("name", KUBERAY)
def test_every_pod_shares_the_storage_runs_as_a_user_and_the_cluster_asks_for_a_token(name: str) -> None:
    (document,) = _documents(INFRA / "kuberay" / name)
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    (claim,) = _documents(INFRA / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["authOptions"]["secretName"] in (INFRA / "kuberay" / "storage.yaml").read_text()
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in templates):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/shared"}]
        assert any(entry["name"] == "MLFLOW_TRACKING_URI" for entry in container["env"])


def test_the_manifests_name_the_ray_version_that_was_tested() -> None:
    constraints = (INFRA.parent / "constraints.txt").read_text()
    (version,) = re.findall(r"^ray==(\S+)$", constraints, re.MULTILINE)
    for name in KUBERAY:
        assert f'rayVersion: "{version}"' in (INFRA / "kuberay" / name).read_text()


def test_the_mlflow_server_is_of_the_versions_that_were_tested_and_each_is_pinned() -> None:
    tested = dict(re.findall(r"^(\S+)==(\S+)$", (INFRA.parent / "constraints.txt").read_text(), re.MULTILINE))
    (line,) = re.findall(r"pip install --no-cache-dir ([^\\\n]+)", (INFRA / "mlflow" / "compose.yaml").read_text())
    pinned = dict(one.split("==") for one in line.split())
    assert {"mlflow", "SQLAlchemy", "boto3"} <= tested.keys() & pinned.keys()
    assert {name: tested.get(name, version) for name, version in pinned.items()} == pinned


def test_the_cluster_file_follows_rays_own_schema() -> None:
    spec = find_spec("ray")
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    (cluster,) = _documents(INFRA / "ray" / "cluster.yaml")
    jsonschema.validate(cluster, schema)


def test_the_image_runs_as_a_user_at_the_tested_versions_and_takes_no_secrets_along() -> None:
    text = (INFRA / "docker" / "Dockerfile").read_text()
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    users = [line for line in instructions if line.startswith("USER")]
    assert users[-1] == "USER fer"
    assert "--constraint constraints.txt" in text
    ignored = (INFRA / "docker" / "Dockerfile.dockerignore").read_text()
    for name in (".env", ".git", "data", ".dvc/config.local"):
        assert f"\n{name}\n" in ignored
    assert {".env", "/.dvc/config.local", "/.git"} <= set(EXCLUDES)


# ------------------------------------------------------------------------------------------------ Slurm


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A folder with the project's tools, and stand-ins for Slurm on this machine: one node, which is this one."""
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("ray", "python"):
        (tools / name).symlink_to(Path(sys.executable).parent / name)
    stand_ins = {
        "scontrol": "echo this-node",
        "srun": 'while [[ "$1" == --* ]]; do shift; done; [[ "$1" == hostname ]] && exec echo 127.0.0.1; exec "$@"',
        "dvc": 'echo "dvc $* on $RAY_ADDRESS"; ray status >/dev/null && echo cluster is there; exit 7',
    }
    for name, script in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(stat.S_IRWXU)
    job = str(os.getpid() % 10000 + 20000)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    yield kept | {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "this-node",
        "SLURM_CPUS_PER_TASK": "1",
    }
    shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_slurm_script_runs_dvc_on_its_own_cluster_keeps_its_exit_code_and_leaves_nothing(
    slurm: dict[str, str],
) -> None:
    psutil = pytest.importorskip("psutil")
    done = subprocess.run(
        ["bash", str(INFRA / "slurm" / "repro.sbatch"), "train@tiny-toy"],
        env=slurm,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "dvc repro train@tiny-toy on 127.0.0.1:" in done.stdout
    assert "cluster is there" in done.stdout
    mark = f"/tmp/ray-{slurm['SLURM_JOB_ID']}"
    left = [one for one in psutil.process_iter(["cmdline"]) if any(mark in word for word in one.info["cmdline"] or [])]
    assert not left
