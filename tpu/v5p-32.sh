#!/usr/bin/env bash
# 16 chips of v5p (named by its 32 cores), 4 hosts. tpu.sh computes batch and ghost groups from the topology.
export MACHINE=v5p-32 ACCELERATOR=v5p-32 TOPOLOGY=v5p:2x2x4 RUNTIME=v2-alpha-tpuv5 ZONE=${ZONE:-us-east5-a}
exec "$(dirname "$0")/tpu.sh" "$@"
