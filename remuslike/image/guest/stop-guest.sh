#!/bin/sh
# Stops the guest cleanly: what serves, then the data disk, then the machine.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

for service in $(pidof redis-server dnsmasq udp-echo); do
    kill "$service"
    while kill -0 "$service" 2>/dev/null; do sleep 0.05; done
done
cd /
sync
if grep -q ' /data ' /proc/mounts; then
    # What still writes there keeps the disk busy; read-only leaves the file system as clean as an unmount does.
    umount /data || mount -o remount,ro /data || echo "remus-guest: /data is in use and stays dirty" >/dev/console
fi
echo "remus-guest stopped" >/dev/console
poweroff -f
