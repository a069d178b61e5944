#!/bin/busybox sh
# First process: finds the root image and hands over to /sbin/guest-init in it.
#
# Every command is a busybox applet run by the shell itself, so nothing but busybox and the modules is in the initramfs.

fail() {
    echo "remus-guest failed: $*"
    poweroff -f
}

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys

# modules.order lists a module after all that it needs. A transport that the machine doesn't have loads all the same.
while read -r module; do
    insmod "/modules/$module" || fail "module $module doesn't load"
done </modules.order

mount -t squashfs -o ro /dev/vda /lower ||
    fail "/dev/vda isn't the root image; give it to QEMU as the first virtio disk, read-only"
mount -t tmpfs -o mode=0755,size=50% tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work overlay /root ||
    fail "the overlay on the root image doesn't mount"

mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/guest-init
