#!/bin/sh
# The nested host's first process: loads its drivers, puts a RAM overlay on this machine's root file system, and
# becomes the agent in there. What it changes is gone when it halts.
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
while read -r module; do
    # QEMU's emulation of nested paging now and then takes a guest's exit twice, the second time with the host's registers as
    # the guest's. Shadow page tables do without it and are as fast there.
    case $module in
    kvm?amd) busybox insmod "/modules/$module.ko" npt=0 ;;
    *) busybox insmod "/modules/$module.ko" ;;
    esac
done < /modules/order

set -e
busybox mkdir /mnt/host /mnt/ram /mnt/root
busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose root /mnt/host
busybox mount -t tmpfs -o size=75% ram /mnt/ram
busybox mkdir /mnt/ram/upper /mnt/ram/work
busybox mount -t overlay -o lowerdir=/mnt/host,upperdir=/mnt/ram/upper,workdir=/mnt/ram/work overlay /mnt/root
for place in proc sys dev; do busybox mount --move "/$place" "/mnt/root/$place"; done
busybox mkdir -p /mnt/root/dev/pts /mnt/root/dev/shm
busybox mount -t devpts devpts /mnt/root/dev/pts
busybox mount -t tmpfs shm /mnt/root/dev/shm
busybox mount -t tmpfs run /mnt/root/run
busybox mkdir -p /mnt/root/run/lock /mnt/root/run/user
busybox mkdir -m 0700 /mnt/root/run/user/0
exchange=$(busybox cat /run/exchange)
busybox mkdir -p "/mnt/root$exchange"
busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=none exchange "/mnt/root$exchange"
busybox cp /run/agent /run/exchange /mnt/root/run/
busybox ip link set lo up
busybox hostname nested
exec busybox switch_root /mnt/root /bin/bash /run/agent
