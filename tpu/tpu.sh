#!/usr/bin/env bash
# One training run on a Cloud TPU slice: create, set up, launch, follow, resume, delete.
#
#   PROJECT=my-project BUCKET=gs://my-bucket tpu/v5e-16.sh VERB [--dry-run]
#
# It is called through the script of a kind of machine (v5e-16.sh, v4-128.sh, ...), which sets what differs between
# them. With --dry-run every command is printed and none is run. All verbs can be repeated: what is done already
# is left as it is.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: PROJECT=... BUCKET=gs://... tpu/MACHINE.sh VERB [--dry-run]

  create    ask for the slice (queued resource; spot unless SPOT=0)
  wait      wait until it is there
  setup     put this commit and its packages on all workers
  smoke     a few minutes' run on all workers, from whatever part of the data is there; its error means nothing
  launch    start the training on all workers, in the background
  up        create, wait, setup, smoke and launch
  preflight compile the step for this slice, on the machine that you sit at: does it fit, what does it cost
  status    state of the slice, and of the training on each worker
  logs      follow the log of one worker (WORKER=0)
  stop      end the training; it saves first, and watch lets it be
  resume    go on after a preemption: a new slice if need be, then setup and launch
  watch     resume whenever it is needed, until the run is done, is stopped, or fails 3 times at one checkpoint
  fetch     copy the packed model and the logs of the finished run here
  delete    give the slice back; the bucket stays

variables (the machine's script sets ACCELERATOR, TOPOLOGY, RUNTIME and a default ZONE):
  PROJECT   Google Cloud project                         (required)
  BUCKET    gs://... for code, data and results          (required)
  ZONE      zone of the slice
  NAME      of the slice                                 (binwrn-MACHINE)
  RUN       name of the run, a folder in BUCKET/runs     (imagenet)
  CONFIG    of the run                                   (configs/imagenet.py)
  BATCH     images of one update                         (128 a chip, from 1024 to 8192)
  FLAGS     flags of train.py, '--config.seed=1'         (batch and ghost groups from the topology)
  DATA      prepared TFDS data, on the workers           (/mnt/binwrn/tfds: BUCKET/tfds)
  CACHE     folder of the workers that keeps what was read of the bucket; with room for all of it, 145 GB
  SPOT      1: may be preempted, cheaper; 0: on demand   (1)
  REF       commit to run                                (HEAD)
  PAUSE     seconds between two looks of wait and watch  (30, 120)
TEXT
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$repo/tpu/common.sh"
for variable in MACHINE ACCELERATOR TOPOLOGY RUNTIME ZONE; do
  [ -n "${!variable:-}" ] || { echo "error: $variable is not set: call tpu/v5e-16.sh or the like" >&2; exit 2; }
done
require PROJECT BUCKET
case "$BUCKET" in gs://?*) ;; *) echo "error: BUCKET must begin with gs://" >&2; exit 2 ;; esac
BUCKET=${BUCKET%/}
NAME=${NAME:-binwrn-$MACHINE}
RUN=${RUN:-imagenet}
CONFIG=${CONFIG:-configs/imagenet.py}
shape=${TOPOLOGY#*:}
FLAGS=${FLAGS-$(batch_flags $((${shape//x/*})))}
# The workers see the bucket as a folder (Cloud Storage FUSE): train.py writes to folders.
mount=/mnt/binwrn
DATA=${DATA:-$mount/tfds}
stopped=runs/$RUN/.stop  # in the bucket: `stop` has ended the run
commit=$(git -C "$repo" rev-parse --short=12 "${REF:-HEAD}^{commit}")
code=$BUCKET/code/$commit.tar.gz
place=(--project="$PROJECT" --zone="$ZONE")

# State of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED, ... or NONE.
# A dry run takes it to be as the first argument says.
state() {
  local found
  if [ "$dry" = 1 ]; then
    run gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)'
    printf '%s\n' "$1"
    return
  fi
  if found=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)' 2>&1); then
    printf '%s\n' "$found"
  elif [[ "$found" == *NOT_FOUND* || "$found" == *"not found"* ]]; then
    echo NONE
  else
    echo "error: $found" >&2
    exit 1
  fi
}

# Runs a command on workers: all, or the number of one.
on_workers() {
  local worker=$1 command=$2
  run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker="$worker" --quiet --command="$command"
}

# Whether the run has written its summary, its last file. A dry run says no.
finished() {
  run gcloud storage ls "$BUCKET/runs/$RUN/summary.json" >/dev/null 2>&1 && [ "$dry" = 0 ]
}

# The step of the newest checkpoint, 0 where there is none.
newest_step() {
  { gcloud storage ls "$BUCKET/runs/$RUN/checkpoints/" 2>/dev/null || true; } |
    awk -F/ '$(NF - 1) ~ /^[0-9]+$/ && $(NF - 1) > step + 0 { step = $(NF - 1) } END { print step + 0 }'
}

# 'yes' where the training runs on all workers, 'no' where not, '?' where they do not answer.
running() {
  local answers
  answers=$(on_workers all "echo \$(hostname): \$(systemctl is-active binwrn || true)") || true
  if grep -Eq ': (inactive|failed)$' <<<"$answers"; then
    echo no
  elif grep -q ': active$' <<<"$answers"; then
    echo yes
  else
    echo '?'
  fi
}

create() {
  local now spot=()
  now=$(state NONE)
  if [ "$now" != NONE ]; then
    echo "$NAME is there: $now" >&2
    return
  fi
  [ "${SPOT:-1}" = 0 ] || spot=(--spot)
  run gcloud compute tpus queued-resources create "$NAME" "${place[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "${spot[@]}" --quiet
}

wait_active() {
  local now
  while true; do
    now=$(state ACTIVE)
    case "$now" in
      ACTIVE) return ;;
      NONE | FAILED | SUSPENDED | SUSPENDING | DELETING)
        echo "error: $NAME is $now: resume makes a new one" >&2
        return 1 ;;
    esac
    echo "$NAME: $now" >&2
    sleep "${PAUSE:-30}"
  done
}

setup() {
  local archive=${TMPDIR:-/tmp}/binwrn-$commit.tar.gz
  # The commit goes through the bucket: no access of the workers to a git server is needed.
  if [ "$dry" = 1 ] || ! gcloud storage ls "$code" >/dev/null 2>&1; then
    run git -C "$repo" archive --format=tar.gz --output="$archive" "$commit"
    run gcloud storage cp "$archive" "$code"
    run rm "$archive"
  fi
  # The images of TPU VMs have Python 3.10; uv brings 3.11, the version that constraints.txt is tested with. The
  # folder gets its name at the end: a set-up that was cut off is begun again. transparent_hugepage: advice of JAX.
  on_workers all "set -euo pipefail; dir=\$HOME/binwrn-$commit; \
if [ ! -e \$dir ]; then \
rm -rf \$dir.part; mkdir \$dir.part; cd \$dir.part; \
gcloud storage cat $code | tar -xz; \
python3 -m pip install --quiet --user uv; \
\$HOME/.local/bin/uv venv --quiet --relocatable --python 3.11 .venv; \
\$HOME/.local/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt '.[tpu,imagenet]'; \
mv \$dir.part \$dir; fi; \
echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null; \
ln -sfn \$dir \$HOME/binwrn; echo \$(hostname): $commit is set up"
  # The bucket as a folder, looked up anew each time: the workers must see each other's files at once.
  local cache=""
  [ -z "${CACHE:-}" ] || cache=" --cache-dir=$CACHE --file-cache-max-size-mb=-1 --file-cache-cache-file-for-range-read"
  on_workers all "set -euo pipefail; \
if ! command -v gcsfuse >/dev/null; then \
curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null; \
echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" \
| sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null; \
sudo apt-get -qq -o DPkg::Lock::Timeout=600 update; \
sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 install gcsfuse; fi; \
if ! mountpoint -q $mount; then \
sudo mkdir -p $mount; sudo chown \$(id -u):\$(id -g) $mount; \
gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0$cache ${BUCKET#gs://} $mount; fi; \
mkdir -p $mount/runs/$RUN"
}

smoke() {
  local flag data=""
  for flag in $FLAGS; do case "$flag" in --config.data.*) data+=" $flag" ;; esac; done
  on_workers all "set -euo pipefail; cd \$HOME/binwrn; \
TFDS_DATA_DIR=$DATA .venv/bin/python train.py --config=configs/imagenet.py:smoke --workdir=$mount/runs/smoke-$commit$data"
}

preflight() {
  local flags
  read -r -a flags <<<"$FLAGS"
  run binwrn preflight --config="$CONFIG" --topology="$TOPOLOGY" "${flags[@]}"
}

launch() {
  # The programs that worker 0 has compiled are kept in the bucket: what goes on, on a new slice too, finds them. That
  # is safe there: JAX takes no lock, and an object is whole or not there at all.
  # A systemd unit: it outlives the connection, there is never a second one, and it gets SIGTERM, upon which the
  # run saves, both from `stop` and when a preempted machine shuts down.
  on_workers all "set -euo pipefail; \
rm -f $mount/$stopped; \
if systemctl is-active --quiet binwrn; then echo \$(hostname): is running; exit 0; fi; \
sudo systemctl reset-failed binwrn 2>/dev/null || true; \
sudo systemd-run --quiet --collect --unit=binwrn --uid=\$(id -u) --gid=\$(id -g) \
--working-directory=\$(readlink -f \$HOME/binwrn) --setenv=HOME=\$HOME --setenv=PYTHONUNBUFFERED=1 \
--setenv=TFDS_DATA_DIR=$DATA --setenv=JAX_COMPILATION_CACHE_DIR=$mount/compiled --property=KillMode=mixed --property=TimeoutStopSec=300 \
--property=LimitNOFILE=65536 \
--property=StandardOutput=append:\$HOME/binwrn.log --property=StandardError=append:\$HOME/binwrn.log \
\$(readlink -f \$HOME/binwrn)/.venv/bin/python train.py --config=$CONFIG --workdir=$mount/runs/$RUN${FLAGS:+ $FLAGS}; \
echo \$(hostname): started"
}

status() {
  local now
  now=$(state ACTIVE)
  echo "$NAME: $now" >&2
  if [ "$now" = ACTIVE ]; then
    on_workers all "echo \$(hostname): \$(systemctl is-active binwrn || true): \$(tail -c 300 \$HOME/binwrn.log | tr '\\r' '\\n' | tail -n 1)"
  fi
}

logs() { on_workers "${WORKER:-0}" "tail -n 100 -F \$HOME/binwrn.log"; }

stop() { on_workers all "touch $mount/$stopped; sudo systemctl stop binwrn"; }

delete() {
  local now
  now=$(state ACTIVE)
  if [ "$now" = NONE ]; then
    echo "$NAME is not there" >&2
    return
  fi
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
}

resume() {
  local now
  now=$(state SUSPENDED)
  case "$now" in
    SUSPENDING | SUSPENDED | FAILED)
      run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
      create ;;
    NONE) create ;;
  esac
  wait_active
  setup
  launch
}

watch() {
  local now step last="" failures=0
  while true; do
    if finished; then
      echo "$BUCKET/runs/$RUN is done: fetch, then delete" >&2
      return
    fi
    if [ "$dry" = 1 ]; then
      resume
      return
    fi
    if gcloud storage ls "$BUCKET/$stopped" >/dev/null 2>&1; then
      echo "$RUN was stopped: resume goes on" >&2
      return
    fi
    step=$(newest_step)
    now=$(state ACTIVE) || now='?'
    [ "$now" != ACTIVE ] || now=$(running)
    if [ "$now" != yes ]; then
      # A slice that answers and does not train, at the step of the last time: the run or its start has failed. A
      # preempted slice does not answer; a run that comes further each time may go on.
      if [ "$step" != "$last" ]; then failures=0; elif [ "$now" = no ]; then failures=$((failures + 1)); fi
      last=$step
      if [ "$failures" -ge 3 ]; then
        echo "error: $RUN has failed 3 times at step $step: it needs you, and $NAME costs until it is deleted; see logs" >&2
        return 1
      fi
      # As a process of its own: in a function called here, an error would not end it.
      bash "${BASH_SOURCE[0]}" resume || echo "trying again" >&2
    fi
    sleep "${PAUSE:-120}"
  done
}

fetch() {
  run mkdir -p "$repo/runs/$RUN"
  local from=$BUCKET/runs/$RUN
  run gcloud storage cp "$from/model.safetensors" "$from/summary.json" "$from/metrics.jsonl" \
    "$from/config.json" "$from/environment.json" "$repo/runs/$RUN/"
}

case "$verb" in
  create | setup | smoke | preflight | launch | status | logs | stop | resume | watch | fetch | delete) "$verb" ;;
  wait) wait_active ;;
  up) create; wait_active; setup; smoke; launch ;;
  *) echo "error: unknown verb $verb, see --help" >&2; exit 2 ;;
esac
