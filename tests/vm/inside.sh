#!/bin/bash
# First thing inside a virtual machine: FOLDER (slot on the shared root) PROJECT. Mounts, runs, leaves the status.
folder=$1
cd "$2" || exit 1
is_mounted() { mountpoint -q "$1"; }
is_mounted /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
is_mounted /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
is_mounted /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
is_mounted /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
is_mounted /dev/shm || mount -t tmpfs tmpfs /dev/shm
# What is under way must not meet the host's, nor another machine's.
mkdir -p /run/guest /var/lib/promissory
mount -t tmpfs tmpfs /run/guest
mkdir -m 1777 /run/guest/tmp
mount -t tmpfs tmpfs /var/lib/promissory
export TMPDIR=/run/guest/tmp HOME=/run/guest PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
bash "$folder/command" </dev/null >>"$folder/output" 2>&1
status=$?
sync
echo $status >"$folder/status.new"
mv "$folder/status.new" "$folder/status"
sync
poweroff -f
