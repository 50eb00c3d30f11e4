#!/bin/bash
# A sweep as an array job: each line of a file of settings is a run, five seeds of it are five more.
#
#   sbatch --array=0-14 experiments/cluster/slurm_sweep.sh runs/sweep settings.txt dcgan --data celeba.zip
#
# settings.txt has the settings of one configuration on each line, here three of them:
#
#   --loss non_saturating
#   --loss hinge
#   --loss wasserstein --gradient-penalty 10
#
# Task t takes line t / 5 with seed t % 5. `ganstyle collect runs/sweep` makes one table of all of them.
#
#SBATCH --job-name=ganstyle-sweep
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log

set -euo pipefail

folder=${1:?usage: sbatch --array=0-N slurm_sweep.sh FOLDER SETTINGS_FILE METHOD [SETTINGS ...]}
settings_file=${2:?usage: sbatch --array=0-N slurm_sweep.sh FOLDER SETTINGS_FILE METHOD [SETTINGS ...]}
shift 2

seeds=5
line=$((SLURM_ARRAY_TASK_ID / seeds + 1))
seed=$((SLURM_ARRAY_TASK_ID % seeds))
read -ra settings < <(sed -n "${line}p" "$settings_file")

status=0
srun ganstyle train "$@" "${settings[@]}" --seed "$seed" --run-dir "$folder/$line-$seed" --resume auto || status=$?
if [[ $status -eq 143 ]]; then
    scontrol requeue "$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
