#!/usr/bin/env bash
# On a machine with an accelerator for minutes, without internet: sets up and runs all.
#
#   bash scripts/card.sh prepare FOLDER OUT MINUTES [FLAGS]  # the benchmark; decides, compiles
#   bash scripts/card.sh run FOLDER OUT MINUTES [FLAGS]      # the long run, in parts for OUT
#
# FLAGS are more of scripts/long_run.py's. FOLDER holds cifar10_train.npz and wheels/, made
# by `python -m scripts.wheels FOLDER/wheels ml_collections safetensors tqdm jinja2
# threadpoolctl --have=LIST`. OUT gets what is to be kept: tables, logs, and the model as
# parts of at most 15 MiB (cat OUT/model.tar.gz.* | tar xz). Between the two the machine
# must keep /tmp; if it does not, the second decides for itself.
set -euo pipefail
what=$1 folder=$2 out=$3 minutes=$4
shift 4
site=/tmp/dsmooth_site run=/tmp/dsmooth_card
mkdir -p "$out"
python3 -m pip install --quiet --no-index --no-deps --upgrade --target="$site" \
  "$folder"/wheels/*.whl
export PYTHONPATH="$site" PYTHONUNBUFFERED=1
long_run=(python3 -m scripts.long_run --data_dir="$folder" --out="$run"
  --minutes="$minutes" "$@")
case $what in
  prepare)
    python3 -m benchmarks.accelerator --seconds="${SECONDS_FOR_BENCHMARK:-240}" \
      --out="$out/accelerator.json" 2>"$out/accelerator.log" | tee "$out/accelerator.txt" ||
      tail -3 "$out/accelerator.log"
    "${long_run[@]}" --prepare 2>&1 | tee "$out/prepare.log"
    ;;
  run)
    status=0
    "${long_run[@]}" 2>&1 | tee "$out/run.log" || status=$?
    test -d "$run/model" || exit "$status"
    tar czf - -C "$run" model plan.json | split -b 15M - "$out/model.tar.gz."
    exit "$status"
    ;;
  *)
    echo "card.sh: $what must be prepare or run" >&2
    exit 2
    ;;
esac
