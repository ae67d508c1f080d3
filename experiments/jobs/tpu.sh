#!/bin/bash
# One run on all hosts of a Cloud TPU slice, which a queued resource waits for:
#
#   bash experiments/jobs/tpu.sh create   # asks for the slice, as spot capacity
#   gcloud compute tpus queued-resources describe metajax --zone=us-central1-a   # until ACTIVE
#   bash experiments/jobs/tpu.sh run experiments.omniglot --preset=finn2017/omniglot_5w1s \
#       --meta_batch_size=32 --validation_tasks=208 --eval_tasks=608 --workdir=gs://BUCKET/omniglot
#   bash experiments/jobs/tpu.sh delete
#
# The tasks are multiples of the 16 chips that share them. After a preemption `delete` and `create` the
# slice again; the same `run` then continues.
set -euo pipefail

NAME=${NAME:-metajax}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url || true)}
COMMIT=${COMMIT:-$(git rev-parse HEAD)}

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case ${1:-} in
create)
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
    ;;
run)
    shift
    on_all_hosts "rm -rf metajax && git clone --quiet '$REPOSITORY' metajax && cd metajax && \
        git checkout --quiet '$COMMIT' && python3 -m venv ~/venv && \
        ~/venv/bin/pip install --quiet 'jax[tpu]' '.[experiments,rl,data,store]'"
    on_all_hosts "cd metajax && exec ~/venv/bin/python -m $(printf '%q ' "$@") --distributed"
    ;;
delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
*)
    echo "usage: bash tpu.sh create | run experiments.NAME [--flag=value ...] | delete" >&2
    exit 2
    ;;
esac
