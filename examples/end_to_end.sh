#!/usr/bin/env bash
# The whole way, on one machine with two CPU cores and no GPU: tracked videos -> shards in S3 -> Phase 1 -> Phase 2 -> a
# sweep -> a fleet of refinements, in which one subject is damaged and one worker is killed -> evaluation -> one report.
# Every job is submitted to a Ray cluster and works from S3 to S3; both are started here, on loopback, and ended.
#
#   examples/end_to_end.sh [OUT]            about a quarter of an hour; OUT is a new folder, end-to-end by default
#   examples/end_to_end.sh OUT smallest     the same with hardly any data: to see whether it all works
#
# It needs: pip install -e '.[dev]' (Ray, and moto in the place of S3). Open OUT/report.html in a browser.
set -euo pipefail

out="${1:-end-to-end}"
size="${2:-documented}"
case "$size" in
    documented)
        world=()
        mono_test=4
        phase1=(steps=60 batch_size=4 schedule.warmup_steps=5 sheet_every=30 checkpoint_every=30 log_every=5)
        phase2=(steps=30 batch_size=4 schedule.warmup_steps=3 sheet_every=15 checkpoint_every=15 log_every=5)
        sweep=(set.steps=10)
        fleet=()
        ;;
    smallest)
        world=(--people 4 --frames 8 --takes 3 --instants 5 --cameras 3 --size 64)
        mono_test=2
        phase1=(steps=4 schedule.warmup_steps=1 sheet_every=2 checkpoint_every=2 log_every=1 batch_size=2 resolution=64)
        phase2=(steps=3 schedule.warmup_steps=1 sheet_every=3 checkpoint_every=3 log_every=1 batch_size=2 resolution=64)
        sweep=(set.steps=2 set.schedule.warmup_steps=1 set.batch_size=2 set.sheet_every=2 set.checkpoint_every=2
               set.resolution=64 set.log_every=1 evaluate.targets=1 evaluate.limit=1
               'variants=[{name: no-anchor, set: {loss.lambda_sp: 0}}]')
        fleet=(refine.iterations=60 refine.resolution=64 evaluation.frames=2)
        ;;
    *) echo "error: $size: expected documented or smallest, or nothing" >&2; exit 2 ;;
esac

if [ -e "$out" ]; then
    echo "error: $out: exists; name a new folder" >&2
    exit 2
fi
if [[ "$(realpath -m "$out")" == *[^A-Za-z0-9._/+=@-]* ]]; then
    echo "error: $(realpath -m "$out"): name a folder of plain letters; it goes through the command lines of jobs" >&2
    exit 2
fi
for program in ray moto_server spatialavatar; do
    if ! command -v "$program" >/dev/null; then
        echo "error: $program is not installed; install it with: pip install -e '.[dev]'" >&2
        exit 2
    fi
done
mkdir -p "$out/logs"
out="$(cd "$out" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
steps="$out/steps.jsonl"

# ---- what is started here is ended here -------------------------------------------------------------------------------
# shellcheck disable=SC2207  # numbers
ports=($(python - <<'PYTHON'
import socket
held = []  # all at once, so that no two are one
while len(held) < 6:
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    if not 10002 <= s.getsockname()[1] <= 19999:  # Ray's own workers take these
        held.append(s)
print(*(s.getsockname()[1] for s in held))
PYTHON
))
started=()
step=
scratch="$(mktemp -d /tmp/e2e.XXXXXX)"  # short: sockets of Ray lie in it
stop() {
    trap - EXIT INT TERM
    for process in $step "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    (sleep 30; for process in $step "${started[@]}"; do kill -9 "$process" 2>/dev/null || true; done) &
    for process in $step "${started[@]}"; do wait "$process" 2>/dev/null || true; done
    kill $! 2>/dev/null || true
    rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 130' INT TERM

export AWS_ENDPOINT_URL="http://127.0.0.1:${ports[0]}" AWS_ENDPOINT_URL_S3="http://127.0.0.1:${ports[0]}"
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
unset AWS_PROFILE AWS_SESSION_TOKEN
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled OMP_WAIT_POLICY=passive
export RAY_API_SERVER_ADDRESS="http://127.0.0.1:${ports[2]}"
unset RAY_ADDRESS

# ---- one line of steps.jsonl for each step ----------------------------------------------------------------------------
note() {  # TITLE COMMAND LOG BEGAN EXIT_CODE
    python - "$steps" "$@" <<'PYTHON'
import json, sys, time
steps, title, command, log, began, code = sys.argv[1:]
line = {"title": title, "command": command, "log": log, "began": float(began), "seconds": round(time.time() - float(began), 1)}
open(steps, "a").write(json.dumps(line | {"exit_code": int(code)}) + "\n")
PYTHON
}

run() {  # TITLE LOG COMMAND...
    local title="$1" log="logs/$2.log" began code=0 shown
    shift 2
    began="$(date +%s.%N)"
    echo "== $title"
    "$@" >"$out/$log" 2>&1 &
    step=$!
    wait "$step" || code=$?  # a signal ends this wait, where it would not end the step
    step=
    shown="$(printf '%q ' "$@")"
    note "$title" "${shown//"$out"/OUT}" "$log" "$began" "$code"
    if [ "$code" != 0 ]; then
        echo "error: $title ended with $code; $out/$log says why" >&2
    fi
    # without what ray job submit itself says
    { grep -v '^ *$\|cli\.py:[0-9]\|sdk\.py:[0-9]' "$out/$log" || true; } | tail -n 2 | cut -c -150
    [ "$code" = 0 ] || exit 1
}

job() {  # TITLE LOG MODULE OPTIONS...: submitted to the cluster
    local title="$1" log="$2"
    shift 2
    run "$title" "$log" ray job submit --working-dir . -- python -m "$@"
}

sets() { for value in "$@"; do printf -- '--set\n%s\n' "$value"; done; }

# ---- a store and a cluster --------------------------------------------------------------------------------------------
moto_server -H 127.0.0.1 -p "${ports[0]}" >"$out/logs/store.log" 2>&1 &
started+=($!)
ray start --head --block --num-cpus=2 --num-gpus=0 --node-ip-address=127.0.0.1 --port="${ports[1]}" \
    --dashboard-host=127.0.0.1 --dashboard-port="${ports[2]}" --dashboard-agent-listen-port="${ports[3]}" \
    --ray-client-server-port="${ports[4]}" --metrics-export-port="${ports[5]}" --object-store-memory=400000000 \
    --temp-dir="$scratch" >"$out/logs/cluster.log" 2>&1 &
started+=($!)
run "Start a store and a cluster" start python examples/end_to_end/bucket.py avatars

# ---- the mission ------------------------------------------------------------------------------------------------------
bucket=s3://avatars
run "Film and track people" world python examples/end_to_end/world.py "$out/tracked" "${world[@]}"

job "Ingest: one camera, from GAGAvatar_track" ingest-monocular ray_jobs.ingest \
    --source "$out/tracked/monocular" --output $bucket/shards/monocular --format gagavatar-track \
    --head "$out/tracked/builtin.head.safetensors" --image-format jpg --max-size 128 --clips-per-shard 4 --test-last "$mono_test"
job "Ingest: several cameras, from VHAP" ingest-multiview ray_jobs.ingest \
    --source "$out/tracked/multiview" --output $bucket/shards/multiview --format vhap \
    --head "$out/tracked/builtin.head.safetensors" --image-format jpg --clips-per-shard 2 --test-last 1

mapfile -t shards < <(sets data.synthetic=null held_out.synthetic=null data.shards.part=train \
    data.shards.held_out_share=0.15 held_out.shards.part=held_out held_out_samples=4)
mapfile -t of_phase1 < <(sets "${phase1[@]}")
mapfile -t of_phase2 < <(sets "${phase2[@]}")
job "Phase 1: monocular" phase1 ray_jobs.train --config configs/dev/phase1.yaml "${shards[@]}" \
    --set data.shards.url=$bucket/shards/monocular "${of_phase1[@]}" --out $bucket/runs/phase1
job "Phase 2: multi-view" phase2 ray_jobs.train --config configs/dev/phase2.yaml "${shards[@]}" \
    --set data.shards.url=$bucket/shards/multiview "${of_phase2[@]}" \
    --set phase1_checkpoint=$bucket/runs/phase1 --out $bucket/runs/phase2

mapfile -t of_sweep < <(sets set.data.synthetic=null set.held_out.synthetic=null set.data.shards.part=train \
    set.data.shards.held_out_share=0.15 set.held_out.shards.part=held_out set.held_out_samples=4 "${sweep[@]}")
job "Sweep: anchor, Jacobian, decay of the learning rate" sweep ray_jobs.tune --config examples/end_to_end/sweep.yaml \
    "${of_sweep[@]}" --set set.data.shards.url=$bucket/shards/multiview \
    --set set.phase1_checkpoint=$bucket/runs/phase1 --out $bucket/sweep

run "List the fleet's subjects" subjects python examples/end_to_end/subjects.py \
    $bucket/shards/monocular $bucket/shards/multiview --poison $bucket/clips/poison --out $bucket/subjects.jsonl
python examples/end_to_end/kill_worker.py "$RAY_API_SERVER_ADDRESS" >"$out/logs/kill.log" 2>"$out/logs/kill.err" &
killer=$!
started+=("$killer")
mapfile -t of_fleet < <(sets "${fleet[@]}")
job "Fleet: refine every subject" fleet ray_jobs.refine --config configs/dev/fleet.yaml \
    --subjects $bucket/subjects.jsonl --output $bucket/fleet --checkpoint $bucket/runs/phase2 "${of_fleet[@]}"
wait "$killer" || { echo "error: no worker was killed; $out/logs/kill.err says why" >&2; exit 1; }
cat "$out/logs/kill.log"
note "$(cat "$out/logs/kill.log")" "" "logs/kill.log" "$(date +%s.%N -r "$out/logs/kill.log")" 0

job "Evaluate the generator on held-out people" evaluate-generator ray_jobs.evaluate --checkpoint $bucket/runs/phase2 \
    --data $bucket/shards/monocular --part held_out --held-out-share 0.15 --targets 4 --out $bucket/evaluation/generator
job "Evaluate the refined avatars" evaluate-avatars ray_jobs.evaluate --avatars $bucket/fleet/avatars \
    --data $bucket/shards --out $bucket/evaluation/avatars

# ---- what is left for people to look at -------------------------------------------------------------------------------
run "Copy the results out of the store" copy python -c '
import sys, s3fs
s3fs.S3FileSystem().get("avatars/", sys.argv[1], recursive=True)
print(sys.argv[1])
' "$out/results"
run "Report" report spatialavatar report "$out/results/shards/monocular" "$out/results/shards/multiview" \
    "$out/results/runs/phase1" "$out/results/runs/phase2" "$out/results/sweep" "$out/results/fleet" \
    "$out/results/evaluation/generator" "$out/results/evaluation/avatars" \
    --steps "$steps" --title "SpatialAvatar, end to end" --out "$out/report.html"
echo "$out/report.html"
