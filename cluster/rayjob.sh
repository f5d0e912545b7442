#!/usr/bin/env bash
# The driver of a RayJob, in its head pod, and what its end means to KubeRay:
#
#   bash rayjob.sh run SPEC [options of ditlaw run]     the RayJob's entrypoint
#   bash rayjob.sh leave SECONDS                        the head's preStop: the driver saves, and is waited for
#
# KubeRay answers every exit code but 0 with a new cluster, up to backoffLimit. That is right where the cluster is lost,
# or a driver came to harm. What `ditlaw cancel` stopped (130) and what is wrong with the input (2) would be no better
# there, so both end as done, and say so here. Trials that could not be run (1) are tried once more.
# shellcheck disable=SC2034  # a trap reads `told`
set -uo pipefail

verb=${1:?usage: rayjob.sh run SPEC [options of ditlaw run] | rayjob.sh leave SECONDS}
shift
mine=${TMPDIR:-/tmp}/ditlaw-rayjob.pid

run() {
  local driver code=0 told=0 leaving=0
  ditlaw run "$@" &
  driver=$!
  # Ray, when it stops a job, signals all processes of it. A driver that hears a second signal does not save.
  trap 'told=1' TERM INT
  trap 'leaving=1; if ((!told)); then told=1; kill -USR1 "$driver"; fi' USR1
  echo $$ > "$mine"
  while true; do   # a signal ends a wait before its time
    code=0
    wait "$driver" || code=$?
    kill -0 "$driver" 2> /dev/null || break
  done
  rm -f "$mine"
  if ((code == 130 && !leaving)); then
    echo "Cancelled, and so not tried again on a new cluster; create the job again to go on."
    code=0
  elif ((code == 2)); then
    echo "Refused (exit code 2), and so not tried again on a new cluster: mend what is said above, and create it again."
    code=0
  fi
  exit "$code"
}

leave() {
  local seconds=$1
  kill -USR1 "$(cat "$mine" 2> /dev/null)" 2> /dev/null || return 0
  while ((seconds-- > 0)) && [[ -e $mine ]]; do sleep 1; done
}

case $verb in
  run | leave) "$verb" "$@" ;;
  *) echo "rayjob.sh: got $verb; wanted run or leave" >&2; exit 2 ;;
esac
