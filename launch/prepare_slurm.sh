#!/usr/bin/env bash
# Prepares token stores under Slurm, a part per task of an array, and then merges them.
#
#     job=$(sbatch --parsable --array=0-15 launch/prepare_slurm.sh CONFIG --out /shared/stores)
#     sbatch --dependency=afterok:$job launch/prepare_slurm.sh CONFIG --out /shared/stores --merge
#
# The same lines again do what is missing, and nothing twice.
#
#SBATCH --job-name=prepare
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  part=(--part "$SLURM_ARRAY_TASK_ID" --parts "$SLURM_ARRAY_TASK_COUNT")
fi
exec .venv/bin/jaxformer data prepare "$@" "${part[@]}"
