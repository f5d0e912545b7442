#!/usr/bin/env bash
# A sweep on SLURM, on as many nodes as it gets: sbatch --nodes 4 cluster/slurm.sh sweeps/study.yaml
# More arguments go to `ditlaw run`. Ray starts on every node with token authentication, its dashboard on loopback.
#
# Five minutes before the limit SLURM sends SIGUSR1 here: every attempt saves a checkpoint, the driver ends, and the job
# is queued again. A preempted job is queued again by SLURM itself (--requeue). Either way the next run goes on from what
# is measured; it waits for the old driver's lock should that still be held.
#SBATCH --job-name=ditlaw
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ditlaw-%j.log
# shellcheck disable=SC2317  # what traps call is not unreachable, as shellcheck before 0.10 thinks
set -euo pipefail

spec=${1:?usage: sbatch [--nodes N] cluster/slurm.sh SPEC [arguments of ditlaw run]}
shift
here=${SLURM_SUBMIT_DIR:-$PWD}
bin=${DITLAW_BIN:-$here/.venv/bin}
port=${RAY_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
patience=${DITLAW_NODES_SECONDS:-300}      # how long nodes may take to join

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

# One token a job, in a file that only its owner reads, on the file system that the nodes share. Results keep the modes
# that the user's own umask gives them.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$here/.ray-token-$SLURM_JOB_ID
(umask 077 && "$bin/python" -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")

driver=0
asked=0
steps=()
finish() {
  trap - EXIT
  for step in "${steps[@]}"; do kill -TERM "$step" 2> /dev/null || true; done
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
save() {
  asked=1
  if ((driver)); then kill -USR1 "$driver" 2> /dev/null || true; fi
}
trap finish EXIT
trap save USR1
trap 'asked=2; if ((driver)); then kill -TERM "$driver" 2> /dev/null || true; fi' TERM INT

node() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" --gpus-per-node="$gpus" "$bin/ray" start "${@:2}" \
  --num-cpus "$cpus" --num-gpus "$gpus" --disable-usage-stats --block; }
node "$head" --head --node-ip-address "$address" --port "$port" --dashboard-host 127.0.0.1 &
steps+=($!)
for ((try = 0; try < 60; try++)); do
  if (exec 3<> "/dev/tcp/$address/$port") 2> /dev/null; then break; fi
  sleep 2
done
for host in "${hosts[@]:1}"; do
  node "$host" --address "$address:$port" &
  steps+=($!)
done

code=0
finished() {                               # $driver, and with which code; a signal ends a wait before its time
  while true; do
    code=0
    wait "$driver" || code=$?
    kill -0 "$driver" 2> /dev/null || break
  done
}

# A driver would find that its gangs do not fit, and refuse, were it started before the nodes are there.
"$bin/python" - "$address:$port" "${#hosts[@]}" "$patience" << 'END' &
import sys, time, ray
address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
there, trouble, deadline = 0, "", time.monotonic() + seconds
while there < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes have joined Ray at {address} after {seconds:g} s{trouble}; going on without.")
    time.sleep(1)
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level="error")
        there, trouble = sum(node["Alive"] for node in ray.nodes()), ""
    except Exception as error:
        trouble = f" ({type(error).__name__}: {error})"
END
driver=$!
finished
if ((asked == 0)); then
  "$bin/ditlaw" run "$spec" --address "$address:$port" --wait 600 "$@" &
  driver=$!
  finished
else
  code=130
fi
if ((asked == 1 && (code == 130 || code == 138))); then   # 138: so early that nothing had begun
  echo "Saved before the limit; queued again."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
