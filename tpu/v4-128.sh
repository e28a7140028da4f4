#!/usr/bin/env bash
# 64 chips of v4 (named by its 128 cores), 16 hosts: batch 8192, 128 images a chip.
# binwrn preflight --config=configs/imagenet.py --topology v4:4x4x4 --config.batch_size=8192
export MACHINE=v4-128 ACCELERATOR=v4-128 RUNTIME=tpu-ubuntu2204-base ZONE=${ZONE:-us-central2-b}
export FLAGS=${FLAGS-"--config.batch_size=8192"}
exec "$(dirname "$0")/tpu.sh" "$@"
