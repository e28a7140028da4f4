#!/usr/bin/env bash
# A training run on a GPU cluster with SLURM: one process per GPU, resumed after preemption and at the time limit.
#
#   WORKDIR=/shared/runs/imagenet TFDS_DATA_DIR=/shared/tfds tpu/slurm.sh VERB [--dry-run]
#
# WORKDIR, the data and this repository must lie on storage that all nodes share. With --dry-run every command is
# printed and none is run.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: WORKDIR=... TFDS_DATA_DIR=... tpu/slurm.sh VERB [--dry-run]

  setup     the packages, in .venv of this repository (PYTHON, 3.11 to 3.13)
  launch    submit the job; resume is the same
  status    of the job
  logs      follow them
  stop      end the job; it saves first, and is not put back into the queue
  preflight compile the step for these GPUs, on the machine that you sit at: does it fit, what does it cost
  job       what SLURM runs: tpu/node.sh in each process, first a few minutes' run (SMOKE= : none)

variables:
  WORKDIR, TFDS_DATA_DIR   folders on shared storage                  (required)
  NODES, GPUS              nodes, and GPUs of each                    (2, 8)
  CPUS                     cores of each process                      (12)
  HOURS                    time limit                                 (24)
  CONFIG                   of the run                                 (configs/imagenet.py)
  KIND                     of GPU, for preflight                      (h100)
  BATCH                    images of one update                       (128 a GPU, from 1024 to 8192)
  FLAGS                    of train.py                    (batch and ghost groups from the number of GPUs)
  NAME                     of the job                                 (binwrn)
  SBATCH_FLAGS             such as '--partition=gpu --account=me'
TEXT
}

# SLURM runs a copy of this file from elsewhere.
repo=${REPO:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$repo/tpu/common.sh"
require WORKDIR TFDS_DATA_DIR
NODES=${NODES:-2} GPUS=${GPUS:-8} CPUS=${CPUS:-12} HOURS=${HOURS:-24} NAME=${NAME:-binwrn}
CONFIG=${CONFIG:-configs/imagenet.py}
FLAGS=${FLAGS-$(batch_flags $((NODES * GPUS)))}
read -r -a sbatch_flags <<<"${SBATCH_FLAGS:-}"
log=$WORKDIR/slurm.log
mark=$WORKDIR/.stop  # there: `stop` has ended the run, `job` does not go on

setup() {
  run "${PYTHON:-python3}" -m venv "$repo/.venv"
  run "$repo/.venv/bin/pip" install --quiet --constraint "$repo/constraints.txt" --editable "${repo}[cuda,imagenet]"
}

launch() {
  run mkdir -p "$WORKDIR"
  run rm -f "$mark"
  # TERM five minutes before the limit: the run saves and exits with 0, and `job` puts itself back in the queue.
  # All GPUs of a node are visible to its processes: JAX gives each its own.
  run env WORKDIR="$WORKDIR" TFDS_DATA_DIR="$TFDS_DATA_DIR" CONFIG="$CONFIG" FLAGS="$FLAGS" REPO="$repo" \
    sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --cpus-per-task="$CPUS" --time="$HOURS:00:00" --signal=TERM@300 --requeue --open-mode=append \
    --output="$log" --chdir="$repo" --export=ALL --dependency=singleton "${sbatch_flags[@]}" "$repo/tpu/slurm.sh" job
}

job() {
  # SLURM itself queues a job again whose node is lost, also one that was being stopped.
  [ "$dry" = 1 ] || [ ! -e "$mark" ] || return 0
  run env CONFIG="$CONFIG" WORKDIR="$WORKDIR" FLAGS="$FLAGS" srun --kill-on-bad-exit=1 "$repo/tpu/node.sh"
  # At the time limit or preempted, not failed (that ended this script) and not stopped: back into the queue.
  if [ "$dry" = 1 ] || [ ! -e "$WORKDIR/summary.json" ] && [ ! -e "$mark" ]; then
    run scontrol requeue "${SLURM_JOB_ID:-JOB}"
  fi
}

preflight() {
  local flags
  read -r -a flags <<<"$FLAGS"
  run binwrn preflight --config="$CONFIG" --topology="cuda:${KIND:-h100}x$((NODES * GPUS))" "${flags[@]}"
}

stop() {
  # The signal reaches the processes of the job and not this script, which then sees the mark.
  run touch "$mark"
  run scancel --me --name="$NAME" --state=RUNNING --signal=TERM
  run scancel --me --name="$NAME" --state=PENDING
}

case "$verb" in
  setup | launch | preflight | job | stop) "$verb" ;;
  resume) launch ;;
  status) run squeue --me --name="$NAME" ;;
  logs) run tail -n 100 -F "$log" ;;
  *) echo "error: unknown verb $verb, see --help" >&2; exit 2 ;;
esac
