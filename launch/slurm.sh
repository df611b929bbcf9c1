#!/usr/bin/env bash
# Trains on GPUs under Slurm, one process per node. A job stopped after saving is requeued.
#
#     sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh configs/recipes/shakespeare_modern.yaml \
#       mesh.preset=hsdp run.dir=/shared/run1
#
#SBATCH --job-name=jaxformer
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -u
code=0
# Slurm signals the steps at the time limit and before a preemption: they save and exit with 75.
srun --kill-on-bad-exit=0 .venv/bin/python train.py "$@" || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
