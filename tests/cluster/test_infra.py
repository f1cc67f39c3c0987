"""The files under infra/: readable, of the shape their tools want, explained, without secrets."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
import yaml_text
from builders.places import free_port
from builders.stopping import wait_until

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.name not in (".gitignore", ".env"))
RENDERED = ("overlays/dev", "overlays/gpu", "overlays/spot", "job")


@cache
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
        assert found[2].startswith(("$", '"$', "...", "postgresql", "token", "false", "~")), found[0]
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
    (cluster,) = _documents(INFRA / "kuberay" / "base" / "raycluster.yaml")
    _validate(cluster, test_data)
    cluster["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        _validate(cluster, test_data)


def test_the_manifests_name_the_ray_version_that_was_tested() -> None:
    (version,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f'rayVersion: "{version}"' in (INFRA / "kuberay" / "base" / "raycluster.yaml").read_text()


def _validate(document: dict[str, Any], test_data: Path) -> None:
    """By KubeRay's own schema, or by the parts of Kubernetes' own schemas that are inside it."""
    kind, spec = document["kind"], document.get("spec")
    if document["apiVersion"] == "ray.io/v1":
        jsonschema.Draft7Validator(_schema(test_data, kind)).validate(document)
        return
    cluster = _schema(test_data, "RayCluster")["properties"]["spec"]["properties"]
    if kind == "NetworkPolicy":
        schema = cluster["networkPolicy"]["properties"]["head"]
        rules = {"ingressRules": spec["ingress"], "egressRules": spec["egress"]}
        jsonschema.Draft7Validator(schema).validate(rules)
        assert spec.keys() == {"podSelector", "policyTypes", "ingress", "egress"}
    elif kind == "PersistentVolumeClaim":
        volume = cluster["headGroupSpec"]["properties"]["template"]["properties"]["spec"]["properties"]["volumes"]
        claim = volume["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
        jsonschema.Draft7Validator(claim).validate(spec)
    else:
        assert kind == "ConfigMap"
        assert all(isinstance(value, str) for value in document["data"].values())


# ------------------------------------------------------------------------------------------------ kustomize


@cache
def _rendered(folder: str) -> dict[str, dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder of infra/kuberay: documents by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl: apt-get install kubernetes-client")
    done = subprocess.run(
        ["kubectl", "kustomize", str(INFRA / "kuberay" / folder)], capture_output=True, text=True, check=False
    )
    if "unknown field" in done.stderr:
        pytest.skip("needs kustomize 5 (kubectl 1.27); that of Debian 12's kubernetes-client is 2.0")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "no deprecated field"
    return {document["kind"]: document for document in yaml_text.load_all(done.stdout)}


def _pods(rendered: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The templates of a cluster's pods, by the group's name."""
    cluster = rendered["RayJob"]["spec"]["rayClusterSpec"] if "RayJob" in rendered else rendered["RayCluster"]["spec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


@pytest.mark.parametrize("folder", RENDERED)
def test_rendered_manifests_follow_the_schemas_of_kuberay_and_kubernetes(folder: str, test_data: Path) -> None:
    for document in _rendered(folder).values():
        _validate(document, test_data)


@pytest.mark.parametrize("folder", RENDERED)
def test_every_pod_is_restricted_has_its_settings_and_is_behind_the_network_policy(folder: str) -> None:
    rendered = _rendered(folder)
    selected = rendered["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for template in _pods(rendered).values():
        pod = template["spec"]
        assert selected.items() <= template["metadata"]["labels"].items()
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        settings, credentials = container["envFrom"]
        assert settings["configMapRef"]["name"] == rendered["ConfigMap"]["metadata"]["name"]
        assert credentials["secretRef"]["name"] == "fer-credentials"
        assert re.fullmatch(r"(registry\.example\.org/)?fer:(cpu|cuda)", container["image"])


@pytest.mark.parametrize("folder", RENDERED)
def test_the_cluster_asks_for_a_token_and_its_workers_scale_from_zero(folder: str) -> None:
    rendered = _rendered(folder)
    cluster = rendered["RayJob"]["spec"]["rayClusterSpec"] if "RayJob" in rendered else rendered["RayCluster"]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "fer-ray-token"}
    assert cluster["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in cluster["workerGroupSpecs"])


def test_no_overlay_needs_a_volume_that_several_nodes_mount() -> None:
    for folder in RENDERED:
        claim = _rendered(folder).get("PersistentVolumeClaim")
        assert (claim is not None) == (folder == "overlays/dev")
        if claim:
            assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
            for template in _pods(_rendered(folder)).values():
                (volume,) = template["spec"]["volumes"]
                assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
                assert template["spec"]["containers"][0]["volumeMounts"][0]["name"] == volume["name"]


@pytest.mark.parametrize("folder", ["overlays/gpu", "overlays/spot", "job"])
def test_gpu_workers_are_on_gpu_nodes_with_the_cuda_image_and_shared_memory(folder: str) -> None:
    pod = _pods(_rendered(folder))["gpu"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    assert container["image"].endswith("cuda")
    assert pod["nodeSelector"]
    assert any(one["key"] == "nvidia.com/gpu" for one in pod["tolerations"])
    (volume,) = pod["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
    assert "NCCL_SOCKET_IFNAME" in _rendered(folder)["ConfigMap"]["data"]


@pytest.mark.parametrize("folder", RENDERED)
def test_every_worker_drains_its_node_before_it_ends_and_has_the_time_for_it(folder: str) -> None:
    for pod in (pod["spec"] for name, pod in _pods(_rendered(folder)).items() if name != "head"):
        *_, command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command.startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
        assert int(command.rpartition("sleep ")[2]) + 10 < pod["terminationGracePeriodSeconds"]


def test_only_gpu_workers_are_on_spot_nodes_and_end_within_the_notice() -> None:
    gpu, spot = _pods(_rendered("overlays/gpu")), _pods(_rendered("overlays/spot"))
    assert {name for name in gpu if gpu[name] != spot[name]} == {"gpu"}
    assert any("spot" in one["key"] for one in spot["gpu"]["spec"]["tolerations"])
    assert any("spot" in key for key in spot["gpu"]["spec"]["nodeSelector"])
    assert spot["gpu"]["spec"]["terminationGracePeriodSeconds"] < 30


def test_the_job_has_the_cluster_of_its_overlay_and_starts_no_other() -> None:
    job = _rendered("job")
    assert "RayCluster" not in job
    spec = job["RayJob"]["spec"]
    assert spec["rayClusterSpec"] == _rendered("overlays/gpu")["RayCluster"]["spec"]
    head, submitter = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"], spec["submitterPodTemplate"]["spec"]
    assert submitter["securityContext"] == {key: head["securityContext"][key] for key in submitter["securityContext"]}
    assert submitter["securityContext"]["runAsNonRoot"]
    for key in ("image", "securityContext"):
        assert submitter["containers"][0][key] == head["containers"][0][key]


# ------------------------------------------------------------------------------------------------ other files


def test_the_mlflow_server_is_of_the_versions_that_were_tested_and_each_is_pinned() -> None:
    tested = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    (line,) = re.findall(r"pip install --no-cache-dir ([^\\\n]+)", (INFRA / "mlflow" / "compose.yaml").read_text())
    pinned = dict(one.split("==") for one in line.split())
    assert {"mlflow", "SQLAlchemy", "boto3"} <= tested.keys() & pinned.keys()
    assert {name: tested.get(name, version) for name, version in pinned.items()} == pinned


def test_the_mlflow_server_of_the_page_is_that_of_the_compose_file() -> None:
    section = (ROOT / "docs" / "cluster.md").read_text().partition("## MLflow for more than one machine")[2]
    install, command = section.split("```")[1].strip().splitlines()
    server = _documents(INFRA / "mlflow" / "compose.yaml")[0]["services"]["server"]
    assert install.replace("pip install", "RUN pip install --no-cache-dir") in server["build"]["dockerfile_inline"]
    assert server["command"] == command


@pytest.mark.parametrize("name", ["cluster.yaml", "aws-gpu.yaml"])
def test_the_cluster_files_follow_rays_own_schema(name: str) -> None:
    spec = find_spec("ray")
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    (cluster,) = _documents(INFRA / "ray" / name)
    jsonschema.validate(cluster, schema)
    types = cluster.get("available_node_types", {})
    assert cluster.get("head_node_type") in (types or [None])
    assert not types or types["gpu"]["resources"]["GPU"] == 1


def test_the_lock_is_of_the_tested_versions_holds_every_dependency_but_torch_and_a_hash_of_each() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entry = re.compile(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", re.MULTILINE)
    locked = {_key(name): version for name, version in entry.findall(lock)}
    assert len(locked) == lock.count("==")
    constraints = re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    tested = {_key(name): version for name, version in constraints}
    assert locked.keys() - tested.keys() == {"setuptools"}  # of the build
    assert {name: tested.get(name, version) for name, version in locked.items()} == locked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["serve"], *extras["s3"]]
    assert {_key(re.split(r"[\[>=<]", one)[0]) for one in required} - locked.keys() == {"torch"}


def _key(name: str) -> str:
    """A package's name as its index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_github_runs_what_ci_runs() -> None:
    workflow = yaml_text.load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["run"]["steps"][-1] == {"run": ".ci/run"}


def test_the_image_runs_as_a_user_at_the_tested_versions_and_takes_no_secrets_along() -> None:
    text = (INFRA / "docker" / "Dockerfile").read_text()
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    users = [line for line in instructions if line.startswith("USER")]
    assert users[-1] == "USER fer"
    assert "--require-hashes --no-deps --requirement requirements.lock" in text
    ignored = (INFRA / "docker" / "Dockerfile.dockerignore").read_text()
    for name in ("**/.env", "**/*.env", ".git", "data", ".dvc/config.local"):  # in every folder only after **/
        assert f"\n{name}\n" in ignored


# ------------------------------------------------------------------------------------------------ Slurm


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A folder with the project's tools, and stand-ins for Slurm: two nodes of two GPUs, both on this machine."""
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("ray", "python"):
        (tools / name).symlink_to(Path(sys.executable).parent / name)
    apart = f"--node-ip-address=127.0.0.1 --dashboard-agent-listen-port={free_port()}"  # what two machines have anyway
    stand_ins = {
        "scontrol": "printf 'first\\nsecond\\n'",
        "srun": f'''
            while [[ "$1" == --* ]]; do [[ "$1" == --nodelist=* ]] && node="${{1#*=}}"; shift; done
            [[ "$1" == hostname ]] && exec echo 127.0.0.1
            [[ "$node" == second ]] && set -- "$@" {apart}
            exec "$@"''',
        "dvc": """
            echo "dvc $* on $RAY_ADDRESS"
            ray status
            [[ "$2" == finishes ]] && exit 7
            (
                trap "sleep 1; ray status && echo last checkpoint; exit 143" TERM
                touch "$SLURM_SUBMIT_DIR/trains"
                while true; do sleep 0.1; done
            ) &
            trap "kill $!; exit 143" TERM  # at once, and its stage with it: dvc waits for none
            wait""",
    }
    for name, script in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(stat.S_IRWXU)
    job = str(os.getpid() % 10000 + 20000)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    yield kept | {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


def _batch(variables: dict[str, str], target: str) -> subprocess.Popen[str]:
    """The script, as Slurm starts it."""
    command = ["bash", str(INFRA / "slurm" / "repro.sbatch"), target]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _nothing_left(variables: dict[str, str]) -> bool:
    """Whether no process knows the job's token or folder any more."""
    mark = f"SLURM_JOB_ID={variables['SLURM_JOB_ID']}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                return False
    return True


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_slurm_script_runs_dvc_on_all_nodes_and_gpus_keeps_its_exit_code_and_leaves_nothing(
    slurm: dict[str, str],
) -> None:
    batch = _batch(slurm, "finishes")
    output, _ = batch.communicate(timeout=200)
    assert batch.returncode == 7, output
    assert "dvc repro finishes on 127.0.0.1:" in output
    assert re.search(r"/2\.0 CPU\b", output), output
    assert re.search(r"/4\.0 GPU\b", output), output
    wait_until(lambda: _nothing_left(slurm), seconds=10)  # Ray's dashboard has servers that end after it


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_term_before_the_time_limit_reaches_the_stage_before_the_slurm_script_ends_its_cluster(
    slurm: dict[str, str],
) -> None:
    batch = _batch(slurm, "trains")
    while not (Path(slurm["SLURM_SUBMIT_DIR"]) / "trains").exists():
        assert batch.poll() is None, batch.communicate()[0]
    batch.send_signal(signal.SIGTERM)  # as `--signal=B:TERM` does: to the script alone
    output, _ = batch.communicate(timeout=100)
    assert batch.returncode == 143, output
    assert "last checkpoint" in output
    wait_until(lambda: _nothing_left(slurm), seconds=10)  # Ray's dashboard has servers that end after it
