#!/usr/bin/env bash
# 256 chips of v5e, 64 hosts, a whole pod: batch 8192, 32 images a chip.
# binwrn preflight --config=configs/imagenet.py --topology v5e:16x16 --config.batch_size=8192 --config.model.ghost_size=32
export MACHINE=v5e-256 ACCELERATOR=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite ZONE=${ZONE:-us-west4-a}
export FLAGS=${FLAGS-"--config.batch_size=8192 --config.model.ghost_size=32"}
exec "$(dirname "$0")/tpu.sh" "$@"
