#!/usr/bin/env bash
# 16 chips of v5e, 4 hosts. tpu.sh computes batch and ghost groups from the topology.
export MACHINE=v5e-16 ACCELERATOR=v5litepod-16 TOPOLOGY=v5e:4x4 RUNTIME=v2-alpha-tpuv5-lite ZONE=${ZONE:-us-west4-a}
exec "$(dirname "$0")/tpu.sh" "$@"
