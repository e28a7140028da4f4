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
# A dry run's commands are its output; beside those that run they are news.
if [ "$dry" = 1 ]; then exec 3>&1; else exec 3>&2; fi
