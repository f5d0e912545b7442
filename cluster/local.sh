#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine: every port on loopback, token authentication on.
#
#   cluster/local.sh                                        until Ctrl-C
#   cluster/local.sh -n 3 -c 4 ditlaw run sweep.yaml --address 127.0.0.1:6379
#
# With a command it runs that, ends the cluster, and leaves with the command's exit code. Only what was started here is
# ended. Other shells need nothing but the token, which Ray finds in ~/.ray/auth_token.
set -euo pipefail

nodes=2 cpus=2 gpus=0 port=6379 dashboard=8265
usage() {
  echo "usage: cluster/local.sh [-n NODES] [-c CPUS of a node] [-g GPUS of a node] [-p PORT] [-d DASHBOARD_PORT] [COMMAND...]" >&2
  exit 2
}
while getopts n:c:g:p:d:h option; do
  case $option in
    n) nodes=$OPTARG ;;
    c) cpus=$OPTARG ;;
    g) gpus=$OPTARG ;;
    p) port=$OPTARG ;;
    d) dashboard=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
for number in "$nodes" "$cpus" "$gpus" "$port" "$dashboard"; do
  [[ $number =~ ^[0-9]+$ ]] || usage
done

here=$(cd "$(dirname "$0")/.." && pwd)
ray=${RAY:-$(command -v ray || echo "$here/.venv/bin/ray")}
[[ -x $ray ]] || { echo "no ray at $ray: make install, or give its path in RAY" >&2; exit 2; }

export RAY_AUTH_MODE=token
if [[ -z ${RAY_AUTH_TOKEN:-} && -z ${RAY_AUTH_TOKEN_PATH:-} && ! -s $HOME/.ray/auth_token ]]; then
  "$ray" get-auth-token --generate > /dev/null
fi

logs=$(mktemp -d)
pids=()
finish() {
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2> /dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2> /dev/null || true; done
  rm -rf "$logs"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

common=(--block --disable-usage-stats --num-cpus "$cpus" --num-gpus "$gpus" --object-store-memory 150000000
  --min-worker-port 0 --max-worker-port 0)
# As on a laptop: a head node that may not have others on other machines keeps to loopback, and so do those that join it.
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 "$ray" start --head --port "$port" --ray-client-server-port $((port + 1)) \
  --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
  --dashboard-agent-listen-port $((dashboard + 1)) "${common[@]}" > "$logs/0" 2>&1 &
pids+=($!)

up() { "$ray" health-check --address "127.0.0.1:$port" > /dev/null 2>&1; }
for _ in $(seq 60); do
  kill -0 "${pids[0]}" 2> /dev/null || { cat "$logs/0" >&2; exit 1; }
  if up; then break; fi
  sleep 0.5
done
for ((node = 1; node < nodes; node++)); do
  "$ray" start --address "127.0.0.1:$port" --dashboard-agent-listen-port $((dashboard + 1 + node)) "${common[@]}" \
    > "$logs/$node" 2>&1 &
  pids+=($!)
done

if (($#)); then
  code=0
  "$@" || code=$?
  exit "$code"
fi
echo "A cluster of $nodes nodes is coming up. Join it with --address 127.0.0.1:$port, submit to it with"
echo "--address http://127.0.0.1:$dashboard (its dashboard). Ctrl-C ends it."
wait
