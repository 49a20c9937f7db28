#!/usr/bin/env bash
# Starts Ray on the nodes of a Slurm allocation, runs one command on it, stops it; ends with the exit code of the command.
#
#   sbatch --nodes=4 cluster/slurm.sh python -m ray_jobs.train --config configs/phase1.yaml --out RUN --workers 4
#
# Submit from the repository, with the virtual environment active; both must be on a disk that all nodes see.
# Edit, or give to sbatch: partition, account, time, GPUs.
#SBATCH --job-name=spatialavatar
#SBATCH --output=%x-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
# --exclusive: one Ray for a node. --signal: five minutes before the end, so that a training writes its checkpoint.
#
# `ray symmetric-run` would be shorter, but reports success when Ray does not start, waits 30 seconds for all nodes and
# no longer, and stops every Ray of this user on the node.
#
# Variables that may be set: HEAD_IP (where the first address is of the wrong network), RAY_TMP (a folder on each node's
# own disk, with a short path), RAY_OPTIONS (further options of `ray start`), NODE_WAIT (seconds).
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch cluster/slurm.sh COMMAND..." >&2
    exit 2
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # where Slurm runs this script
head_ip=${HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}
# Of this job alone, and outside of 10002-19999, which Ray's workers take.
port=$((20000 + SLURM_JOB_ID % 10000))
# Sockets lie in it, and their paths have a limit of 107 characters.
temp=${RAY_TMP:-/tmp}/ray-$SLURM_JOB_ID
read -ra options <<< "${RAY_OPTIONS:-}"
options+=("--temp-dir=$temp")
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over by itself
    options+=("--num-cpus=$SLURM_CPUS_PER_TASK")
fi

# Other users reach these ports, too: a token keeps them out. It is in no file and no command line.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
if [ "$RAY_AUTH_MODE" = token ] && [ -z "${RAY_AUTH_TOKEN:-}" ]; then
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_TOKEN
fi

steps=()
# shellcheck disable=SC2329  # the trap calls it
stop_ray() {
    trap '' TERM INT
    for step in "${steps[@]}"; do kill -TERM "$step" 2> /dev/null || true; done
    for step in "${steps[@]}"; do wait "$step" || true; done
    srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" rm -rf "$temp" || true
}
trap stop_ray EXIT
trap 'exit 143' TERM INT

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --block --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 "${options[@]}" &
steps+=($!)
if [ "${#nodes[@]}" -gt 1 ]; then
    others=$((${#nodes[@]} - 1))
    # A node that asks before the head answers ends with an error, hence the loop.
    # shellcheck disable=SC2016  # the inner shell expands it
    srun --nodes="$others" --ntasks="$others" --exclude="$head" bash -c \
        'until ray health-check --address="$0" &> /dev/null; do sleep 2; done; exec ray start --address="$0" "$@"' \
        "$head_ip:$port" --block "${options[@]}" &
    steps+=($!)
fi

# All nodes, or an error: a training on half of them would be a surprise.
export RAY_ADDRESS=$head_ip:$port
ends=$((SECONDS + ${NODE_WAIT:-300}))
until [ "$(timeout 60 python -c '
import logging, ray
ray.init(logging_level=logging.ERROR, log_to_driver=False)
print("nodes", sum(node["Alive"] for node in ray.nodes()))
' 2> /dev/null | tail -n 1)" = "nodes ${#nodes[@]}" ]; do
    for step in "${steps[@]}"; do
        if ! kill -0 "$step" 2> /dev/null; then
            echo "Ray ended while it started; it says why above" >&2
            exit 1
        fi
    done
    if [ $SECONDS -ge $ends ]; then
        echo "not all of ${#nodes[@]} nodes have joined Ray at $RAY_ADDRESS in ${NODE_WAIT:-300} s" >&2
        exit 1
    fi
    sleep 2
done

# In the background, for bash looks at signals only between commands. One that comes before the command has its number
# is passed on after.
command='' ended=''
trap 'ended=yes; [ -z "$command" ] || kill -TERM "$command" 2> /dev/null || true' TERM INT
"$@" &
command=$!
[ -z "$ended" ] || kill -TERM "$command" 2> /dev/null || true
while true; do
    ended='' code=0
    wait "$command" || code=$?
    # what a signal has ended is the wait, not the command
    if [ -z "$ended" ] || [ "$code" -le 128 ]; then break; fi
done
exit "$code"
