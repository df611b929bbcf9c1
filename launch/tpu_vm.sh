#!/usr/bin/env bash
# Trains on a TPU VM slice, all hosts at once, and goes on after preemptions.
#
#     NAME=run1 ZONE=us-east5-a TYPE=v5p-128 VERSION=v2-alpha-tpuv5 \
#       launch/tpu_vm.sh configs/recipes/llama3_8b_v5p_128.yaml run.dir=gs://BUCKET/run1
#
# The repository must be reachable from the hosts: REPOSITORY is a Git address, REVISION a commit.
# run.dir lies in a bucket, or on a file system that all hosts have mounted.
set -eu
: "${NAME:?a name for the slice}" "${ZONE:?its zone}" "${TYPE:?such as v5p-128}"
: "${VERSION:?the runtime version for TYPE}" "${REPOSITORY:?a Git address}" "${REVISION:=main}"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

state() {
  gcloud compute tpus tpu-vm describe "$NAME" --zone "$ZONE" --format 'value(state)' 2>/dev/null ||
    echo MISSING
}

start_slice() {
  gcloud compute tpus tpu-vm delete "$NAME" --zone "$ZONE" --quiet 2>/dev/null || true
  until gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" \
    --accelerator-type "$TYPE" --version "$VERSION" --spot; do
    echo "no capacity; another try in a minute" >&2
    sleep 60
  done
  on_all_hosts "git clone '$REPOSITORY' jaxformer && cd jaxformer && git checkout '$REVISION' &&
    python3 -m venv .venv && .venv/bin/pip install -e '.[tpu,gcs]'"
}

[ "$(state)" = READY ] || start_slice
while true; do
  code=0
  on_all_hosts "cd jaxformer && launch/until_done.sh .venv/bin/python train.py $(printf '%q ' "$@")" ||
    code=$?
  [ "$code" -ne 0 ] || exit 0
  # The slice is gone, or a host was told to stop: both go on from the newest checkpoint.
  if [ "$(state)" != READY ]; then
    start_slice
  elif [ "$code" -ne 75 ]; then
    exit "$code"
  fi
done
