#!/usr/bin/env bash
# 16 chips of v5p (named by its 32 cores), 4 hosts: batch 2048, 128 images a chip.
# binwrn preflight --config=configs/imagenet.py --topology v5p:2x2x4 --config.batch_size=2048
export MACHINE=v5p-32 ACCELERATOR=v5p-32 RUNTIME=v2-alpha-tpuv5 ZONE=${ZONE:-us-east5-a}
export FLAGS=${FLAGS-"--config.batch_size=2048"}
exec "$(dirname "$0")/tpu.sh" "$@"
