#!/bin/bash
# Trains on several GPU nodes under Slurm: one process for each GPU, which find each other through Slurm's variables.
#
#   sbatch experiments/cluster/slurm.sh runs/celeba dcgan --data celeba.zip --image-size 64 --batch-size 1024
#
# The run folder and the data must lie where all nodes see them. When the job is preempted or its time is up, Slurm sends
# SIGTERM two minutes before: the run saves a checkpoint and ends, and the job goes back into the queue and on from there,
# also with another number of nodes. A node that dies ends the job within a minute; it is queued again likewise.
#
#SBATCH --job-name=ganstyle
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

run_dir=${1:?usage: sbatch slurm.sh RUN_DIR METHOD [SETTINGS ...]}
shift

# Compiled programs, shared by all nodes and kept for the next time.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.xla_cache}

status=0
srun --kill-on-bad-exit=1 ganstyle train "$@" --run-dir "$run_dir" --resume auto || status=$?

# 143: stopped by SIGTERM, with a checkpoint. Anything else but 0 may be a node that died: try again, three times at most.
restarts=${SLURM_RESTART_COUNT:-0}
if [[ $status -eq 143 || ($status -ne 0 && $restarts -lt 3) ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
