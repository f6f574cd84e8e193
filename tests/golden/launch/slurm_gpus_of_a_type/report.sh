#!/bin/bash
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --partition=cpu
#SBATCH --mem=16G

cd /home/ada/lab || exit 5
export PYTHONPATH=/shared/runs/quickstart-16bab757/launch/1/code
export PYTHONSAFEPATH=1
export PERSONA_LAB_TASKS=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

/shared/env/bin/python -m persona_lab work /shared/runs/quickstart-16bab757/launch/1 --report
code=$?
mkdir -p /shared/runs/quickstart-16bab757/launch/1/exits && echo "$code" > /shared/runs/quickstart-16bab757/launch/1/exits/"$SLURM_JOB_ID"
exit "$code"
