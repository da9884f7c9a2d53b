#!/usr/bin/env bash
# On a machine with an accelerator for minutes, without internet: sets up and runs all.
#
#   bash scripts/card.sh FOLDER OUT MINUTES [STAGES]
#
# Trains the STAGES of scripts/long_run.py (all of its own, if none are named) in
# MINUTES, compiled and timed beforehand; meanwhile the benchmark's scoring compiles,
# which runs at the end. FOLDER holds cifar10_{train,test}.npz and wheels/, made by
# `python -m scripts.wheels FOLDER/wheels REQUIREMENT ... --have=LIST`. OUT gets what is
# to be kept as soon as it is there: tables, logs, and each stage's best variables.
set -euo pipefail
folder=$1 out=$2 minutes=$3 stages=${4:-}
site=/tmp/dsmooth_site run=/tmp/dsmooth_card data=/tmp/dsmooth_data
mkdir -p "$out" "$run" "$data"
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
export JAX_COMPILATION_CACHE_DIR="$run/compiled" XLA_PYTHON_CLIENT_PREALLOCATE=false
say() { echo "$SECONDS s: $*" >>"$out/card.log"; }

say begun
python3 -m pip install --quiet --no-index --no-deps --upgrade --target="$site" \
  "$folder"/wheels/*.whl
python3 -m scripts.unpack "$folder" "$data" cifar10
train=(python3 -m scripts.long_run --data_dir="$data" --out="$run" --minutes="$minutes")
train+=(${stages:+"--stages=$stages"} ${FLAGS:-})
"${train[@]}" --prepare >"$out/prepare.log" 2>&1
say prepared
"${train[@]}" --prepare=compile >"$out/compile.log" 2>&1 || say "compiling failed"
say compiled
nice python3 -m benchmarks.accelerator --seconds=900 --only=rate,score,torch\ score,part \
  --after="$run/free" --out="$out/accelerator.json" >"$out/accelerator.txt" \
  2>"$out/accelerator.log" &
XLA_FLAGS=--xla_gpu_deterministic_ops=true nice python3 -m benchmarks.accelerator \
  --seconds=900 --only=step\ bandnet\ 160 --after="$run/free2" \
  --out="$out/deterministic.json" >/dev/null 2>"$out/deterministic.log" &
status=0
"${train[@]}" >"$out/run.log" 2>&1 || status=$?
say "trained: $status"
for best in "$run"/*/checkpoints/best; do
  (cd "$run" && stage=$(basename "${best%/checkpoints/best}") &&
    tar cf "$out/$stage.tar" "$stage"/{checkpoints/best,config.json,metrics.jsonl})
done
touch "$run/free"
wait -n || true
touch "$run/free2"
wait || true
say done
exit "$status"
