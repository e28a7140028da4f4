#!/usr/bin/env bash
# 64 chips of v4 (named by its 128 cores), 16 hosts. tpu.sh computes batch and ghost groups from the topology.
export MACHINE=v4-128 ACCELERATOR=v4-128 TOPOLOGY=v4:4x4x4 RUNTIME=tpu-ubuntu2204-base ZONE=${ZONE:-us-central2-b}
exec "$(dirname "$0")/tpu.sh" "$@"
