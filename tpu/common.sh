# What the scripts of this folder share; sourced after they have defined usage().
# shellcheck shell=bash

# From the script's arguments: the one verb, and whether this is a dry run (0 or 1).
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

# Ends the script unless the named variables are set.
require() {
  local variable
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || { echo "error: set $variable, see --help" >&2; exit 2; }
  done
}

# Prints a command as it could be typed; runs it unless this is a dry run.
run() {
  local text="" word
  for word in "$@"; do
    case "$word" in *[!A-Za-z0-9_./:=@%,+-]* | "") word="'${word//\'/\'\\\'\'}'" ;; esac
    text+="${text:+ }$word"
  done
  printf '+ %s\n' "$text" >&3
  [ "$dry" = 1 ] || "$@"
}
# The flags that give each of so many devices whole ghost groups of batch norm, and as many as the others: the batch
# nearest to BATCH, or 128 images a device between 1024 and 8192. The rule is that of binwrn_jax/preflight/suggest.py.
batch_flags() {
  local devices=$1 wanted=${BATCH:-0} ghost=128 unit
  if [ "$wanted" = 0 ]; then
    wanted=$((128 * devices))
    [ "$wanted" -ge 1024 ] || wanted=1024
    [ "$wanted" -le 8192 ] || wanted=8192
  fi
  while [ "$ghost" -gt 32 ] && [ $((2 * devices * ghost)) -gt $((3 * wanted)) ]; do ghost=$((ghost / 2)); done
  unit=$((devices * ghost))
  local groups=$(((2 * wanted + unit) / (2 * unit)))
  [ "$groups" -gt 0 ] || groups=1
  echo "--config.batch_size=$((groups * unit)) --config.model.ghost_size=$ghost"
}

# A dry run's commands are its output; beside those that run they are news.
if [ "$dry" = 1 ]; then exec 3>&1; else exec 3>&2; fi
