#!/usr/bin/env bash
# What each machine, or each process of it, runs of a job under SLURM, Kubernetes and SkyPilot: a few minutes' run
# from whatever part of the data is there, whose error means nothing, and then the run itself.
#
#   CONFIG=... WORKDIR=... TFDS_DATA_DIR=... [FLAGS=...] [SMOKE=...] tpu/node.sh [--coordinator=... and further flags]
#
# WORKDIR and TFDS_DATA_DIR are folders that all machines see. SMOKE is the configuration of the first run: that of
# ImageNet where CONFIG is, else none. The same command goes on with a run that was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for variable in CONFIG WORKDIR TFDS_DATA_DIR; do
  [ -n "${!variable:-}" ] || { echo "error: set $variable" >&2; exit 2; }
done
python=${PYTHON:-.venv/bin/python}
read -r -a flags <<<"${FLAGS:-}"
# Programs compiled for the job are found again after a restart. XLA's own cache renames files, which buckets cannot.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$WORKDIR-compiled}
export JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=none
case "$CONFIG" in *imagenet.py*) SMOKE=${SMOKE-configs/imagenet.py:smoke} ;; esac
if [ -n "${SMOKE:-}" ] && [ ! -e "$WORKDIR-smoke/summary.json" ] && [ ! -d "$WORKDIR/checkpoints" ]; then
  data=()
  for flag in "${flags[@]}"; do case "$flag" in --config.data.*) data+=("$flag") ;; esac; done
  "$python" train.py --config="$SMOKE" --workdir="$WORKDIR-smoke" "${data[@]}" "$@"
fi
exec "$python" train.py --config="$CONFIG" --workdir="$WORKDIR" "${flags[@]}" "$@"
