#!/bin/sh
# A test guest's first process: loads its drivers, runs the test's script, and powers off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done < /modules/order
setsid cttyhack sh /script
poweroff -f
