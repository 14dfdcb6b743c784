#!/bin/sh
# A test guest's first process: loads its drivers, runs the test's script, and powers off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done < /modules/order
sh /script
# Powering off loses what the serial port's driver has not sent yet, and busybox knows no tcdrain(). (No shell gets the
# console as its controlling terminal: it would be hung up, and its output lost, when that shell ends.)
sleep 1
poweroff -f
