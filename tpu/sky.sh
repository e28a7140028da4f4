#!/usr/bin/env bash
# A training run on GPU nodes of any cloud or of a Kubernetes cluster such as GKE, by SkyPilot (`pip install
# skypilot`, `sky check`): a managed job, which SkyPilot resumes after a preemption by itself.
#
#   BUCKET=gs://my-bucket tpu/sky.sh VERB [--dry-run]
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: BUCKET=gs://... tpu/sky.sh VERB [--dry-run]

  launch    find machines, set them up, train, resume after each preemption
  status    of the job
  logs      follow them
  delete    end the job and give the machines back

variables:
  BUCKET          gs://... or s3://..., with the data in tfds/  (required to launch)
  RUN             name of the run, a folder in BUCKET/runs      (imagenet)
  NODES           machines                                      (2)
  GPUS            of each                                       (H100:8)
  INFRA           gcp, aws, k8s, ... as `sky` takes it          (the cheapest)
  CONFIG, FLAGS   of train.py                                   (configs/imagenet.py)
  NAME            of the job                                    (binwrn)
TEXT
}

verb="" dry=0
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "error: unknown option $argument" >&2; exit 2 ;;
    *) [ -z "$verb" ] || { echo "error: one verb at a time: $verb, $argument" >&2; exit 2; }
      verb=$argument ;;
  esac
done
[ -n "$verb" ] || { usage >&2; exit 2; }
NAME=${NAME:-binwrn}
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Prints a command as it could be typed; runs it unless this is a dry run.
run() {
  local text="" word
  for word in "$@"; do
    case "$word" in *[!A-Za-z0-9_./:=@%,+-]* | "") word="'${word//\'/\'\\\'\'}'" ;; esac
    text+="${text:+ }$word"
  done
  printf '+ %s\n' "$text"
  [ "$dry" = 1 ] || "$@"
}

launch() {
  local infra=()
  [ -n "${BUCKET:-}" ] || { echo "error: set BUCKET, see --help" >&2; exit 2; }
  [ -z "${INFRA:-}" ] || infra=(--infra "$INFRA")
  run cd "$repo"
  run sky jobs launch --yes --detach-run --name "$NAME" --num-nodes "${NODES:-2}" --gpus "${GPUS:-H100:8}" \
    "${infra[@]}" --env BUCKET="${BUCKET%/}" --env RUN="${RUN:-imagenet}" \
    --env CONFIG="${CONFIG:-configs/imagenet.py}" --env FLAGS="${FLAGS:-}" tpu/sky.yaml
}

case "$verb" in
  launch) launch ;;
  status) run sky jobs queue ;;
  logs) run sky jobs logs --name "$NAME" ;;
  delete) run sky jobs cancel --yes --name "$NAME" ;;
  *) echo "error: unknown verb $verb, see --help" >&2; exit 2 ;;
esac
