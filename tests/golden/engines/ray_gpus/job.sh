#!/bin/bash
cd /home/ada/lab || exit 5
export PYTHONPATH=/shared/runs/quickstart-16bab757/launch/1/code
export PYTHONSAFEPATH=1
export PERSONA_LAB_TASKS=8
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

exec /shared/env/bin/python -m persona_lab.launch.ray_tasks /shared/runs/quickstart-16bab757/launch/1 persona-lab-quickstart-16bab757-1 --jobs 8 --at-once 3 --cpus 8 --gpus 2 --gpu-type A100
