#!/bin/sh
# Stops the guest cleanly: redis, then the data disk, then the machine.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

redis=$(pidof redis-server)
if [ -n "$redis" ]; then
    kill "$redis"
    while kill -0 "$redis" 2>/dev/null; do sleep 0.05; done
fi
cd /
sync
if grep -q ' /data ' /proc/mounts; then
    # What still writes there keeps the disk busy; read-only leaves the file system as clean as an unmount does.
    umount /data || mount -o remount,ro /data || echo "remus-guest: /data is in use and stays dirty" >/dev/console
fi
echo "remus-guest stopped" >/dev/console
poweroff -f
