#!/usr/bin/env bash
# A training run on GPU nodes of any cloud or of a Kubernetes cluster such as GKE, by SkyPilot (`pip install
# skypilot`, `sky check`): a managed job, which SkyPilot resumes after a preemption by itself.
#
#   BUCKET=gs://my-bucket tpu/sky.sh VERB [--dry-run]
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: BUCKET=gs://... tpu/sky.sh VERB [--dry-run]

  launch    find machines, set them up, train, resume after each preemption; a few minutes' run comes first
  status    of the job
  logs      follow them
  delete    end the job and give the machines back

variables:
  BUCKET          gs://... or s3://..., with the data in tfds/  (required to launch)
  RUN             name of the run, a folder in BUCKET/runs      (imagenet)
  NODES           machines                                      (2)
  GPUS            of each                                       (H100:8)
  INFRA           gcp, aws, k8s, ... as `sky` takes it          (the cheapest)
  CONFIG          of the run                                    (configs/imagenet.py)
  BATCH           images of one update                          (128 a GPU, from 1024 to 8192)
  FLAGS           of train.py             (batch and ghost groups from the number of GPUs)
  NAME            of the job                                    (binwrn)
TEXT
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$repo/tpu/common.sh"
NAME=${NAME:-binwrn}

launch() {
  local infra=()
  require BUCKET
  local gpus=${GPUS:-H100:8}
  FLAGS=${FLAGS-$(batch_flags $((${NODES:-2} * ${gpus##*:})))}
  [ -z "${INFRA:-}" ] || infra=(--infra "$INFRA")
  run cd "$repo"
  run sky jobs launch --yes --detach-run --name "$NAME" --num-nodes "${NODES:-2}" --gpus "$gpus" \
    "${infra[@]}" --env BUCKET="${BUCKET%/}" --env RUN="${RUN:-imagenet}" \
    --env CONFIG="${CONFIG:-configs/imagenet.py}" --env FLAGS="$FLAGS" tpu/sky.yaml
}

case "$verb" in
  launch) launch ;;
  status) run sky jobs queue ;;
  logs) run sky jobs logs --name "$NAME" ;;
  delete) run sky jobs cancel --yes --name "$NAME" ;;
  *) echo "error: unknown verb $verb, see --help" >&2; exit 2 ;;
esac
