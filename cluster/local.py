"""A Ray cluster of several nodes on this machine: every port on loopback, token authentication on.

    python cluster/local.py                                      until Ctrl-C
    python cluster/local.py -n 3 -c 4 -- ditlaw run sweep.yaml --address 127.0.0.1:6379

With a command it runs that, ends the cluster, and leaves with the command's exit code. Only what was started here is
ended. Drivers on this machine find the token in ~/.ray/auth_token by themselves, as `ditlaw` does.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="ditlaw-") as folder:
        _environment(folder)
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from ray.cluster_utils import Cluster  # reads the environment

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's shell has it ignored in the background
    size = {"num_cpus": arguments.cpus, "num_gpus": arguments.gpus, "object_store_memory": 150_000_000}
    port = arguments.dashboard_port
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    dashboard["dashboard_agent_listen_port"] = port + 1  # its default is taken where another cluster runs
    cluster = Cluster(initialize_head=True, head_node_args={**size, **dashboard, "gcs_server_port": arguments.port})
    try:
        for node in range(1, arguments.nodes):
            # Nodes that shared one folder would unpack a job's code over the code that runs.
            cluster.add_node(**size, runtime_env_dir_name=f"runtime_resources_{node}")
        cluster.wait_for_nodes()
        if arguments.command:
            return subprocess.call(arguments.command)
        where = (
            f"--address {cluster.address}, submit to them with --address http://127.0.0.1:{arguments.dashboard_port}"
        )
        sys.stdout.write(f"{arguments.nodes} nodes. Join them with {where}. Ctrl-C ends them.\n")
        sys.stdout.flush()
        signal.pause()
    except KeyboardInterrupt:
        return 130
    finally:
        cluster.shutdown()
    return 0


def _environment(folder: str) -> None:
    """Loopback alone, a token that every process of this user finds, and files apart from those of other clusters."""
    os.environ["RAY_TMPDIR"] = folder  # else "auto", which jobs use, may mean another cluster of this machine
    # By this name Ray lets the nodes of a cluster be of one machine; their address is then 127.0.0.1.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # workers get their share of cores that others want too
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not os.environ.get("RAY_AUTH_TOKEN") and not token.is_file():
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A Ray cluster of several nodes on this machine, on loopback.")
    parser.add_argument("-n", "--nodes", type=int, default=2)
    parser.add_argument("-c", "--cpus", type=int, default=2, help="of a node")
    parser.add_argument("-g", "--gpus", type=int, default=0, help="of a node")
    parser.add_argument("-p", "--port", type=int, default=6379)
    parser.add_argument("-d", "--dashboard-port", type=int, default=8265)
    parser.add_argument("command", nargs="*", help="run it, then end the cluster; after --")
    arguments = parser.parse_args()
    if arguments.nodes < 1 or arguments.cpus < 1:
        parser.error(f"got {arguments.nodes} nodes of {arguments.cpus} CPUs; wanted at least one of each")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
