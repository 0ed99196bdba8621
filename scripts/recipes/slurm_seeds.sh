#!/usr/bin/env bash
# Three seeds of one run as a Slurm array; each goes on where it stopped, however often it is stopped (docs/reliability.md).
#     sbatch scripts/recipes/slurm_seeds.sh
#SBATCH --array=0-2
#SBATCH --gres=gpu:1 --cpus-per-task=6 --time=12:00:00
#SBATCH --signal=USR1@120 --requeue --open-mode=append
status=0
srun python train_clan.py --random-seed "$SLURM_ARRAY_TASK_ID" --snapshot-dir "snapshots/clan_seed$SLURM_ARRAY_TASK_ID" \
    --resume auto --fast --val-every 2000 || status=$?
if [ "$status" -eq 75 ]; then # stopped by the signal, with its state saved
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    exit 0
fi
exit "$status"
