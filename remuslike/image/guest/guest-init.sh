#!/bin/sh
# Brings the guest up as its kernel command line asks (the root is mounted, /dev, /proc and /sys are there):
#
#   remus.address=10.77.0.2/24    address of eth0; remus.address1=... of eth1, and so on
#   remus.gateway=10.77.0.1       default route
#   remus.data=vdb                ext4 disk to mount at /data
#   remus.service=redis|dhcp|none what serves:
#     redis   TCP port 6379, append-only file in /data, fsync at every write
#     dhcp    dnsmasq on eth0, leases in /run/dnsmasq.leases; an echo on UDP port 7 that counts, log in /data/echo.log
#   remus.pool=FIRST,LAST         what dnsmasq gives away, within the network of remus.address
#
# A shell answers on TCP port 2222. "remus-guest ready" on the console says that all of it is up.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb

say() { echo "remus-guest $*" >/dev/console; }

fail() {
    say "failed: $*"
    poweroff -f
}

parameter() { # NAME DEFAULT
    for word in $(cat /proc/cmdline); do
        case $word in
        "remus.$1="*) echo "${word#*=}" && return ;;
        esac
    done
    echo "$2"
}

load_modules() {
    while read -r module; do
        insmod "/lib/modules/$module" || fail "module $module doesn't load"
    done </lib/modules/modules.order
}

bring_up_network() {
    ip link set lo up
    for device in /sys/class/net/eth*; do
        [ -e "$device" ] || continue
        name=${device##*/}
        number=${name#eth}
        address=$(parameter "address${number#0}" "")
        [ -n "$address" ] || continue
        ip address add "$address" dev "$name" || fail "remus.address${number#0}=$address isn't ADDRESS/PREFIX"
        ip link set "$name" up
    done
    gateway=$(parameter gateway "")
    [ -z "$gateway" ] || ip route add default via "$gateway" || fail "remus.gateway=$gateway isn't reachable"
}

mount_data() {
    disk=$(parameter data "")
    [ -n "$disk" ] || return
    mount -t ext4 -o noatime "/dev/$disk" /data || fail "remus.data=$disk isn't an ext4 disk"
}

answers() { printf 'PING\r\nQUIT\r\n' | nc 127.0.0.1 6379 2>/dev/null | grep -q PONG; }

start_redis() {
    redis-server /etc/redis.conf >/run/redis.log 2>&1 &
    redis=$!
    until answers; do
        kill -0 "$redis" 2>/dev/null || fail "redis ended: $(tail -n 3 /run/redis.log)"
        sleep 0.02
    done
}

bound() { grep -q "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$1") " /proc/net/udp; }

start_on_udp() { # PORT PROGRAM ARGUMENT...
    port=$1 && shift
    log=/run/${1##*/}.log
    "$@" >"$log" 2>&1 &
    until bound "$port"; do
        kill -0 "$!" 2>/dev/null || fail "$1 ended: $(tail -n 3 "$log")"
        sleep 0.02
    done
}

start_dhcp() {
    start_on_udp 67 dnsmasq --conf-file=/etc/dnsmasq.conf --dhcp-range="$(parameter pool ""),12h"
    start_on_udp 7 udp-echo 7 /data/echo.log
}

start_agent() {
    nc -ll -p 2222 -e /bin/agent &
    until echo exit | nc 127.0.0.1 2222 2>/dev/null; do sleep 0.02; done
}

start_service() {
    service=$(parameter service none)
    case $service in
    none) ;;
    redis) start_redis ;;
    dhcp) start_dhcp ;;
    *) fail "remus.service=$service is unknown; use redis, dhcp or none" ;;
    esac
}

mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t devpts devpts /dev/pts
hostname remus-guest

load_modules
bring_up_network
mount_data
start_service
start_agent
say ready

# The first process must stay, and collects the processes that nobody else waits for.
while true; do
    wait
    sleep 3600
done
