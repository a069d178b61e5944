#!/bin/busybox sh
# First process of the lab: puts a file system of its own over the host's, starts the agent in it, powers off.
#
# Every command is a busybox applet run by the shell itself: the initramfs has nothing but busybox and the modules.

fail() {
    echo "lab failed: $*"
    poweroff -f
}

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys

# modules.order lists a module after all that it needs.
while read -r module; do
    insmod "/modules/$module" || fail "module $module doesn't load"
done </modules.order

mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /lower ||
    fail "the host's root file system doesn't mount"
mount -t tmpfs -o mode=0755,size=75% changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work root /root ||
    fail "the overlay on the host's root file system doesn't mount"

for place in dev proc sys; do
    mount --move /$place /root/$place
done
ln -s /proc/self/fd /root/dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${stream%:*}" "/root/dev/${stream#*:}"
done
mkdir -p /root/dev/pts /root/dev/shm /root/run
mount -t devpts -o mode=0620,ptmxmode=0666 pts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
# What runs on the host has no sockets, locks or namespaces here.
mount -t tmpfs -o mode=0755 run /root/run
mkdir /root/run/lock

hostname lab
ip link set lo up

tries=0
until port=$(ls /root/dev/vport*p1 2>&1); do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "there is no channel: $port"
    sleep 0.05
done
# Opened once for all: closing the port would drop what waits in it.
exec 3<>"$port"
read -r python <&3
read -r packages <&3

# A root of its own rather than a chroot, in which the kernel refuses user namespaces.
mkdir /root/run/lab
cp /bin/busybox /root/run/lab/busybox
exec switch_root /root /run/lab/busybox sh -c '
    PYTHONPATH=$1 "$0" -S -m remuslike.lab.agent 3 || echo "lab failed: the agent ended with status $?"
    exec /run/lab/busybox poweroff -f
' "$python" "$packages"
