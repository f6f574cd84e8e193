#!/bin/bash
cd /home/ada/lab || exit 5
export PYTHONPATH=/shared/runs/quickstart-16bab757/launch/1/code
export PYTHONSAFEPATH=1
export PERSONA_LAB_TASKS=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150
export ACCELERATE_USE_CPU=true

exec /shared/env/bin/python -m accelerate.commands.launch --multi_gpu --gpu_ids all --mixed_precision no --dynamo_backend no --num_machines 1 --num_processes 2 --machine_rank 0 --main_process_port 0 -m persona_lab work /shared/runs/quickstart-16bab757/launch/1
