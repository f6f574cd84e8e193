#!/bin/bash
#SBATCH --array=0-0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=a100:2
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#SBATCH --partition=gpu

id="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
again=/shared/runs/quickstart-16bab757/launch/1/again/$SLURM_ARRAY_TASK_ID
rm -f "$again" /shared/runs/quickstart-16bab757/launch/1/exits/"$id"
export PERSONA_LAB_TASK="$SLURM_ARRAY_TASK_ID" PERSONA_LAB_AGAIN="$again"
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR="$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
export MASTER_PORT="$((20000 + SLURM_JOB_ID % 40000))"
echo "$id on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"

# The signal reaches this shell alone. Its workers get another one, which srun would not pass on gently.
asked=
trap 'asked=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1 TERM
# Since Slurm 22.05 srun asks for one core unless it is told otherwise.
srun --input=none --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} bash /shared/runs/quickstart-16bab757/launch/1/worker.sh &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2> /dev/null; do wait "$step"; code=$?; done

# A job that was cancelled is not running any more, and stays so. By $id: one task of an array has the number of the whole array for its own.
if [ "$code" -ne 0 ] && { [ -n "$asked" ] || [ -e "$again" ]; } && [ "$(squeue -h -j "$id" -o %T)" = RUNNING ]; then
    scontrol requeue "$id" && exit 75
fi
mkdir -p /shared/runs/quickstart-16bab757/launch/1/exits && echo "$code" > /shared/runs/quickstart-16bab757/launch/1/exits/"$id"
exit "$code"
