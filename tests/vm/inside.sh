#!/bin/busybox sh
# First thing inside a virtual machine, with FOLDER (ours, in .vm on the shared root) and PROJECT as arguments:
# another root, mounts, the command, its status. busybox, because one static program is read once.
#
# The root that virtme gives asks the host at every open and read (9p without a cache): starting Python takes
# four times as long there. So the same root is mounted again with a cache, and made the root. What both sides
# write, /tmp and .vm, stays without one. /usr/bin/python sees no difference.
folder=$1 project=$2
set -e
mount -t 9p -o rw,trans=virtio,version=9p2000.L,msize=512000,access=any,cache=loose cached /mnt
for name in proc sys dev run; do mount -o rbind /$name /mnt/$name; done
mkdir -p /mnt/run/uncached
cd /mnt
pivot_root . run/uncached
mount -o bind /run/uncached/tmp /tmp
mount -o bind "/run/uncached$project/.vm" "$project/.vm"
umount -l /run/uncached

is_mounted() { mountpoint -q "$1" || mount -t "$2" "$2" "$1"; }
is_mounted /sys/fs/bpf bpf
is_mounted /sys/kernel/security securityfs
is_mounted /sys/kernel/debug debugfs
is_mounted /sys/kernel/tracing tracefs
is_mounted /sys/fs/cgroup cgroup2
# As systemd does it. Until somebody switches on any controller, new groups are not perf's either.
echo +pids >/sys/fs/cgroup/cgroup.subtree_control
is_mounted /dev/shm tmpfs
# What is under way must not meet the host's, nor another machine's.
mkdir -p /run/tmp /run/home /var/lib/promissory
for name in /run/tmp /var/tmp /var/log /var/lib/promissory; do mount -t tmpfs tmpfs $name; done
chmod 1777 /run/tmp /var/tmp
ip link set lo up

export TMPDIR=/run/tmp HOME=/run/home PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd "$project"
set +e
/bin/sh "$folder/command" </dev/null >>"$folder/output" 2>&1
echo $? >"$folder/status.new"
sync
mv "$folder/status.new" "$folder/status"
# The host ends the machine now.
sleep 60
