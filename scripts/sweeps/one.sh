#!/usr/bin/env bash
# One run of a sweep on a node of a cluster: under its lock, with its output in its log. TERM lets it save and end with
# 143; inside a Slurm job, it is then put back into the queue.
# Usage: one.sh COMMANDS NUMBER   a line of COMMANDS: folder, lock, log, program and arguments, quoted for the shell
set -uo pipefail
file=${1:?} number=${2:?} pid='' stopped=''
stop() {
    stopped=1
    [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null
}
trap stop TERM INT
refuse() {
    echo "error: $*" >&2
    exit 2
}
line=$(sed -n "${number}p" "$file" 2>/dev/null)
[[ -n $line ]] || refuse "$(uname -n) cannot read line $number of $file: use a folder that all nodes share"
eval "set -- $line"
folder=$1 lock=$2 log=$3
shift 3
cd "$folder" || refuse "$(uname -n) does not have $folder: use a folder that all nodes share"
mkdir -p "$(dirname "$lock")" "$(dirname "$log")" && exec 9>>"$lock" || refuse "cannot write $lock"
held=75
while [[ $held == 75 && -z $stopped ]]; do # another sweep may be running it
    flock -w 2 -E 75 9
    held=$?
done
[[ $held == 75 || $held == 0 ]] || refuse "cannot lock $lock: use a file system with locks"
code=143
if [[ -z $stopped ]]; then
    "$@" >>"$log" 2>&1 &
    pid=$!
    [[ -z $stopped ]] || stop # it came just before the process had an id
    wait "$pid"
    code=$?
    while ((code > 128)) && jobs -rp | grep -qx "$pid"; do # the trap ends a wait early
        wait "$pid"
        code=$?
    done
fi
[[ $code == 0 || $code == 143 ]] || tail -n 1 "$log" >&2
id=${SLURM_ARRAY_JOB_ID:-}_${SLURM_ARRAY_TASK_ID:-}
if [[ $code == 143 && $id != _ && $(scontrol show job -o "$id" 2>/dev/null) == *JobState=RUNNING* ]]; then # not scancel
    exec 9>&-
    scontrol requeue "$id" && exit 0
fi
exit "$code"
