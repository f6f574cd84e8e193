#!/bin/bash
# Once it is asked to stop, everybody in this session is; it waits until they have kept their checkpoints.
asked=
trap 'asked=yes' TERM INT HUP
bash /shared/runs/quickstart-16bab757/launch/1/worker.sh < /dev/null &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2> /dev/null; do wait "$step"; code=$?; done
if [ -n "$asked" ]; then code=cancelled; else bash /shared/runs/quickstart-16bab757/launch/1/report.sh < /dev/null || code=$?; fi
mkdir -p /shared/runs/quickstart-16bab757/launch/1/exits && echo "$code" > /shared/runs/quickstart-16bab757/launch/1/exits/"$(cat /shared/runs/quickstart-16bab757/launch/1/started)"
