#!/usr/bin/env bash
# 16 chips of v6e (Trillium), 4 hosts. tpu.sh computes batch and ghost groups from the topology.
export MACHINE=v6e-16 ACCELERATOR=v6e-16 TOPOLOGY=v6e:4x4 RUNTIME=v2-alpha-tpuv6e ZONE=${ZONE:-us-east5-b}
exec "$(dirname "$0")/tpu.sh" "$@"
