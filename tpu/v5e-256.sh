#!/usr/bin/env bash
# 256 chips of v5e, 64 hosts, a whole pod. tpu.sh computes batch and ghost groups from the topology.
export MACHINE=v5e-256 ACCELERATOR=v5litepod-256 TOPOLOGY=v5e:16x16 RUNTIME=v2-alpha-tpuv5-lite ZONE=${ZONE:-us-west4-a}
exec "$(dirname "$0")/tpu.sh" "$@"
