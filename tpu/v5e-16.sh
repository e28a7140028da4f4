#!/usr/bin/env bash
# 16 chips of v5e, 4 hosts: batch 1024, 64 images a chip, so batch norm in groups of 64.
# binwrn preflight --config=configs/imagenet.py --topology v5e:4x4 --config.model.ghost_size=64
export MACHINE=v5e-16 ACCELERATOR=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite ZONE=${ZONE:-us-west4-a}
export FLAGS=${FLAGS-"--config.model.ghost_size=64"}
exec "$(dirname "$0")/tpu.sh" "$@"
