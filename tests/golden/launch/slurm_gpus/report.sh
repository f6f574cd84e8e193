#!/bin/bash
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --time=1-12:00:00
#SBATCH --constraint=[a100|h100]

cd /home/ada/lab || exit 5
module load cuda/12
export PYTHONPATH=/shared/runs/quickstart-16bab757/launch/1/code
export PYTHONSAFEPATH=1
export PERSONA_LAB_TASKS=8
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

/shared/env/bin/python -m persona_lab work /shared/runs/quickstart-16bab757/launch/1 --report
code=$?
mkdir -p /shared/runs/quickstart-16bab757/launch/1/exits && echo "$code" > /shared/runs/quickstart-16bab757/launch/1/exits/"$SLURM_JOB_ID"
exit "$code"
