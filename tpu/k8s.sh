#!/usr/bin/env bash
# A training run on GPU nodes of a Kubernetes cluster with JobSet, resumed after each lost pod.
#
#   IMAGE=registry/binwrn:1 CLAIM=shared tpu/k8s.sh VERB [--dry-run]
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: IMAGE=... CLAIM=... tpu/k8s.sh VERB [--dry-run]

  preflight compile the step for these GPUs, on the machine that you sit at: does it fit, what does it cost
  manifest  print the manifest, tpu/jobset.yaml filled in
  launch    apply it; a few minutes' run comes first
  status    of the job and its pods
  logs      follow those of the first pod
  delete    end the job; it saves first

variables:
  IMAGE           built from tpu/Containerfile, which says how                     (required)
  CLAIM           volume that all pods may write to; they see it as /shared        (required)
  WORKDIR         folder of the run                                (/shared/runs/imagenet)
  TFDS_DATA_DIR   folder of the data                               (/shared/tfds)
  NODES, GPUS     pods, and GPUs of each                           (2, 8)
  KIND            of GPU, for preflight                            (h100)
  CONFIG          of the run                                       (configs/imagenet.py)
  BATCH           images of one update                             (128 a GPU, from 1024 to 8192)
  FLAGS           of train.py                (batch and ghost groups from the number of GPUs)
  NAME            of the job                                       (binwrn)
TEXT
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$repo/tpu/common.sh"
NODES=${NODES:-2} GPUS=${GPUS:-8} NAME=${NAME:-binwrn} CONFIG=${CONFIG:-configs/imagenet.py}
WORKDIR=${WORKDIR:-/shared/runs/imagenet} TFDS_DATA_DIR=${TFDS_DATA_DIR:-/shared/tfds}
FLAGS=${FLAGS-$(batch_flags $((NODES * GPUS)))}

manifest() {
  require IMAGE CLAIM
  local text name
  text=$(grep -v '^#' "$repo/tpu/jobset.yaml")
  for name in NAME NODES GPUS IMAGE CLAIM CONFIG FLAGS WORKDIR TFDS_DATA_DIR; do
    text=${text//"\${$name}"/"${!name}"}
  done
  printf '%s\n' "$text"
}

launch() {
  local file
  manifest >/dev/null  # says what is not set
  file=$(mktemp "${TMPDIR:-/tmp}/binwrn-XXXXXX.yaml")
  manifest >"$file"
  run kubectl apply --filename="$file"
  unlink "$file"
}

preflight() {
  local flags
  read -r -a flags <<<"$FLAGS"
  run binwrn preflight --config="$CONFIG" --topology="cuda:${KIND:-h100}x$((NODES * GPUS))" "${flags[@]}"
}

case "$verb" in
  manifest | launch | preflight) "$verb" ;;
  status) run kubectl get jobsets,pods --selector="jobset.sigs.k8s.io/jobset-name=$NAME" ;;
  logs) run kubectl logs --follow "--selector=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run kubectl delete jobset "$NAME" ;;
  *) echo "error: unknown verb $verb, see --help" >&2; exit 2 ;;
esac
