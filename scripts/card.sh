#!/usr/bin/env bash
# On a machine with an accelerator for minutes, without internet: sets up and runs all.
#
#   bash scripts/card.sh prepare FOLDER OUT MINUTES STAGES [FLAGS]
#   bash scripts/card.sh run FOLDER OUT MINUTES STAGES [FLAGS]
#
# The first trains the teacher while the benchmark compiles, then times the STAGES, lets
# the benchmark run, and compiles what the stages take in MINUTES. The second runs them.
# FLAGS are more of scripts/long_run.py's. FOLDER holds cifar10_{train,test}.npz and
# wheels/, made by `python -m scripts.wheels FOLDER/wheels REQUIREMENT ... --have=LIST`.
# OUT gets what is to be kept: tables, logs, and all workdirs' best as parts of at most
# 15 MiB (cat OUT/best.tar.* | tar x). Between the two the machine must keep /tmp. The
# second stops, and saves, after SECONDS_AT_MOST where that is set.
set -euo pipefail
what=$1 folder=$2 out=$3 minutes=$4 stages=$5
shift 5
teacher=cifar10_masks_card
site=/tmp/dsmooth_site run=/tmp/dsmooth_card data=/tmp/dsmooth_data
mkdir -p "$out" "$run" "$data"
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
export JAX_COMPILATION_CACHE_DIR="$run/compiled"
export XLA_PYTHON_CLIENT_PREALLOCATE=false

long_run() { # STAGES MINUTES LOG [FLAGS]
  local names=$1 time=$2 log=$3
  shift 3
  ${SECONDS_AT_MOST:+timeout "$SECONDS_AT_MOST"} \
    python3 -m scripts.long_run --data_dir="$data" --out="$run" --stages="$names" \
    --minutes="$time" "$@" >"$log" 2>&1
}
keep() { # STAGES NAME
  local folders=()
  for stage in ${1//,/ }; do
    for file in checkpoints/best config.json metrics.jsonl curve.png; do
      test ! -e "$run/$stage/$file" || folders+=("$stage/$file")
    done
  done
  tar cf - -C "$run" "${folders[@]}" | split -b 15M - "$out/$2.tar."
}

case $what in
  prepare)
    python3 -m pip install --quiet --no-index --no-deps --upgrade --target="$site" \
      "$folder"/wheels/*.whl
    python3 -m scripts.unpack "$folder" "$data" cifar10
    XLA_PYTHON_CLIENT_PREALLOCATE=true python3 -m benchmarks.accelerator \
      --seconds="${SECONDS_FOR_BENCHMARK:-240}" --after="$run/free" \
      --out="$out/accelerator.json" >"$out/accelerator.txt" 2>"$out/accelerator.log" &
    long_run "$stages" "$minutes" "$run/first.log" --prepare "$@" &
    first=$!
    long_run "$teacher" "${MINUTES_FOR_TEACHER:-2}" "$out/teacher.log" "$@" ||
      tail -5 "$out/teacher.log"
    keep "$teacher" teacher || true
    wait "$first" || tail -5 "$run/first.log"
    # Now all programs are compiled, and nothing else runs: times are true.
    rm -f "$run/${stages%%,*}.plan.json"
    long_run "$stages" "$minutes" "$out/prepare.log" --prepare "$@" ||
      tail -5 "$out/prepare.log"
    touch "$run/free"
    wait || true
    tail -3 "$out/accelerator.log"
    cat "$out/accelerator.txt" "$out/teacher.log" "$out/prepare.log"
    long_run "$stages" "$minutes" "$run/compile.log" --prepare=compile "$@" ||
      tail -5 "$run/compile.log"
    ;;
  run)
    status=0
    long_run "$stages" "$minutes" "$out/run.log" "$@" || status=$?
    tail -40 "$out/run.log"
    keep "$stages" best
    exit "$status"
    ;;
  *)
    echo "card.sh: $what must be prepare or run" >&2
    exit 2
    ;;
esac
