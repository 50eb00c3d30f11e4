#!/bin/bash
# Trains on a slice of Cloud TPU VMs: makes it, installs, starts the same command on all hosts, and deletes it.
#
#   ZONE=us-west4-a BUCKET=gs://my-bucket experiments/cluster/cloud_tpu_vm.sh v5litepod-16 dcgan --batch-size 2048
#
# BUCKET holds celeba.zip and takes the run folder; both are reached through gcsfuse, so that all hosts see them.
# With SPOT=1 the machines are cheap and may be taken away: run the same command again, and the run goes on.
set -euo pipefail

accelerator=${1:?usage: cloud_tpu_vm.sh ACCELERATOR METHOD [SETTINGS ...]}
shift
: "${ZONE:?set ZONE, such as us-west4-a}" "${BUCKET:?set BUCKET, such as gs://my-bucket}"
name=${NAME:-ganstyle}
version=${TPU_VERSION:-v2-alpha-tpuv5-lite}
options=()
if [[ -n ${SPOT:-} ]]; then options+=(--spot); fi

on_all() {
    gcloud compute tpus tpu-vm ssh "$name" --zone "$ZONE" --worker=all --command "$1"
}

gcloud compute tpus tpu-vm create "$name" --zone "$ZONE" --accelerator-type "$accelerator" --version "$version" \
    "${options[@]}"
trap 'gcloud compute tpus tpu-vm delete "$name" --zone "$ZONE" --quiet' EXIT

git archive --format tar.gz --output /tmp/ganstyle.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/ganstyle.tar.gz "$name:" --zone "$ZONE" --worker=all
on_all "mkdir -p ganstyle shared && tar xzf ganstyle.tar.gz -C ganstyle && python3 -m venv venv &&
    (cd ganstyle && ../venv/bin/pip install --quiet -r requirements-tpu.txt) &&
    gcsfuse --implicit-dirs ${BUCKET#gs://} shared"
on_all "venv/bin/ganstyle train $(printf '%q ' "$@") --data shared/celeba.zip --run-dir shared/runs/celeba \
    --distributed yes --resume auto"
