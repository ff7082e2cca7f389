set -euo pipefail

token="$(dirname "$folder")/.$(basename "$folder")-$SLURM_JOB_ID.token"
file="$(mktemp)"
nodes=''
driver=''
told=''

tell() { # WHY: has the run save and end
  told="$1"
  echo "xfer: told to save and end, $told"
  [[ -z "$driver" ]] || kill -TERM "$driver" 2>/dev/null || true
}

ended() { # PROCESS: waits for its end and returns its status; a signal to this script ends `wait`, not the process
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

finish() {
  rm -f "$token" "$file"
  if [[ -n "$nodes" ]]; then
    # not by a signal to srun, which would have its nodes killed at once
    scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null || kill -TERM "$nodes" 2>/dev/null || true
    ended "$nodes" || true
  fi
}

node() { # on every node: Ray, until it is told to end
  sockets="/tmp/x$SLURM_JOB_ID.$SLURM_NODEID" # short, as paths of sockets have to be
  options=(--address="$address")
  if [[ "$SLURM_NODEID" == 0 ]]; then
    options=(--head --node-ip-address="${address%:*}" --port="${address##*:}" --include-dashboard=false)
    options+=(--ray-client-server-port="$client_port")
  fi
  trap 'rm -rf "$sockets"' EXIT
  until [[ "$SLURM_NODEID" == 0 ]] || (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; do sleep 0.2; done
  told=''
  trap 'told=yes' TERM # Ray has it too, and its end is waited for
  for _ in 1 2 3; do   # Ray gives its processes 30 seconds to start, which a busy machine may not keep
    rm -rf "$sockets"
    mkdir -m 700 "$sockets"
    if "$python" -m ray.scripts.scripts start "${options[@]}" --block --temp-dir="$sockets" \
      --num-cpus="$cpus" --num-gpus="$gpus" --min-worker-port=0 --max-worker-port=0 || [[ -n "$told" ]]; then
      return 0
    fi
  done
  return 1
}

trap finish EXIT
trap 'tell "the time limit is near"' USR1
trap 'tell "the job is cancelled"' TERM # scancel --batch --signal=TERM

mkdir -p "$(dirname "$folder")"
rm -f "$token"
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token")
printf '%s\n' "$document" >"$file"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # when Ray is told to end, the run has ended before

# this script runs on the first node, the head
ip="$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ { print $1; exit }')" || true
ip="${ip:-$(hostname -I | awk '{ print $1 }')}"
read -r port client_port < <("$python" -c '
from socket import socket
one, other = socket(), socket()
one.bind(("", 0)), other.bind(("", 0))
print(one.getsockname()[1], other.getsockname()[1])')
address="${ip:-127.0.0.1}:$port"

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  bash -c "set -euo pipefail; $(declare -p python cpus gpus address client_port); $(declare -f node); node" &
nodes=$!
"$python" -m cluster.nodes "$address" "$SLURM_JOB_NUM_NODES" "$gather_s" &
driver=$!
while kill -0 "$nodes" 2>/dev/null && kill -0 "$driver" 2>/dev/null; do wait -n "$nodes" "$driver" || true; done
if ! kill -0 "$nodes" 2>/dev/null; then
  echo "xfer: Ray does not start on a node, see above" >&2
  kill -KILL "$driver" 2>/dev/null || true
  wait "$driver" 2>/dev/null || true
  exit 1
fi
ended "$driver"

"$python" -m xfer "$verb" "$file" cluster.address="$address" &
driver=$!
ended "$driver" && status=0 || status=$?

if [[ "$told" == "the time limit is near" && "$status" == 143 ]]; then
  if [[ -n "$(find "$folder" -newer "$token" \( -path '*/checkpoints/*' -o -name trials.jsonl \) -print -quit)" ]]; then
    finish
    trap '' TERM # with which Slurm ends this turn
    scontrol requeue "$SLURM_JOB_ID" || echo "xfer: no other turn; the same script, submitted again, goes on" >&2
  else
    echo "xfer: nothing was saved before the time limit, so there is no other turn; give it more --hours" >&2
  fi
fi
exit "$status"
