#!/bin/bash
cd /home/ada/lab || exit 5
export PYTHONPATH=/shared/runs/quickstart-16bab757/launch/1/code
export PYTHONSAFEPATH=1
export PERSONA_LAB_TASKS=2
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

exec /shared/env/bin/python -m accelerate.commands.launch --config_file /shared/runs/quickstart-16bab757/launch/1/accelerate.yaml --num_machines 2 --num_processes 16 --machine_rank "$SLURM_NODEID" --main_process_port "$MASTER_PORT" --main_process_ip "$MASTER_ADDR" --same_network -m persona_lab work /shared/runs/quickstart-16bab757/launch/1
