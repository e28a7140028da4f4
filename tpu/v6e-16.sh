#!/usr/bin/env bash
# 16 chips of v6e (Trillium), 4 hosts: batch 2048, 128 images a chip.
# binwrn preflight --config=configs/imagenet.py --topology v6e:4x4 --config.batch_size=2048
export MACHINE=v6e-16 ACCELERATOR=v6e-16 RUNTIME=v2-alpha-tpuv6e ZONE=${ZONE:-us-east5-b}
export FLAGS=${FLAGS-"--config.batch_size=2048"}
exec "$(dirname "$0")/tpu.sh" "$@"
