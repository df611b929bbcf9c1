#!/usr/bin/env bash
# Trains on a TPU VM slice, on all hosts at once, and resumes after preemptions.
#
#     NAME=run1 ZONE=us-east5-a TYPE=v5p-128 VERSION=v2-alpha-tpuv5 \
#       REPOSITORY=https://github.com/OWNER/jaxformer REVISION=COMMIT \
#       launch/tpu_vm.sh configs/recipes/llama3_8b_v5p_128.yaml run.dir=gs://BUCKET/run1
#
# The hosts clone REPOSITORY, a Git address. REVISION is a commit, or a branch, whose newest commit
# every start takes (default: main). run.dir is in a bucket, or on a file system that all hosts have
# mounted. The same command resumes from wherever it stopped, whether or not the slice still exists
# and its hosts are set up.
set -eu
: "${NAME:?a name for the slice}" "${ZONE:?its zone}" "${TYPE:?such as v5p-128}"
: "${VERSION:?the runtime version for TYPE}" "${REPOSITORY:?a Git address}" "${REVISION:=main}"

# The hosts' own Python may be older than 3.11: uv installs one.
setup="
set -e
[ -d jaxformer ] || git clone --quiet '$REPOSITORY' jaxformer
cd jaxformer
git fetch --quiet --tags origin
git checkout --quiet --detach 'origin/$REVISION' 2>/dev/null ||
  git checkout --quiet --detach '$REVISION'
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
[ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs]'"
training="cd jaxformer && exec .venv/bin/python launch/until_done.py .venv/bin/python train.py \
  $(printf '%q ' "$@")"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

state() {
  gcloud compute tpus tpu-vm describe "$NAME" --zone "$ZONE" --format 'value(state)' 2>/dev/null ||
    echo MISSING
}

create_slice() {
  gcloud compute tpus tpu-vm delete "$NAME" --zone "$ZONE" --quiet 2>/dev/null || true
  until gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" \
    --accelerator-type "$TYPE" --version "$VERSION" --spot; do
    echo "the slice was not created, for the reason above; trying again in a minute" >&2
    sleep 60
  done
}

while true; do
  [ "$(state)" = READY ] || create_slice
  code=0
  { on_all_hosts "$setup" && on_all_hosts "$training"; } || code=$?
  if [ "$code" -eq 0 ]; then
    echo "done; the slice still runs; delete it: gcloud compute tpus tpu-vm delete $NAME --zone $ZONE" >&2
    exit 0
  fi
  # If the slice is gone, or a host was told to stop, resume from the newest checkpoint.
  if [ "$code" -ne 75 ] && [ "$(state)" = READY ]; then
    exit "$code"
  fi
done
