#!/bin/bash
# Ray ends a task and the process that it started without a word to those below: this watch tells them, and they keep their checkpoints.
task=$PPID group=$$
setsid bash -c 'while kill -0 "$0" && kill -0 -- "-$1"; do sleep 1; done; kill -TERM -- "-$1"' "$task" "$group" > /dev/null 2>&1 &
bash "$1"
exit $?
