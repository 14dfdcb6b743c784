# Runs in the guest: what it finds the machine to be. Prints 'ok WHAT' or 'FAILED WHAT' for each check.

check() {
    what=$1
    shift
    if "$@"; then echo "ok $what"; else echo "FAILED $what"; fi
}
is() { [ "$(cat "$2")" = "$1" ]; }
dmesg > /tmp/dmesg
said() { grep -q "$1" /tmp/dmesg; }

dmi=/sys/class/dmi/id
check dmi-maker is Orangery $dmi/sys_vendor
check dmi-product is 'Virtual Machine' $dmi/product_name
echo "uuid $(cat $dmi/product_uuid)"
check dmi-chassis is 1 $dmi/chassis_type
check dmi-version said 'SMBIOS 3.0.0 present'

# Two sockets of three cores, one thread each.
cpu=/sys/devices/system/cpu
check cpus [ "$(nproc)" = 6 ]
check sockets [ "$(cat $cpu/cpu*/topology/physical_package_id | tr '\n' ' ')" = '0 0 0 1 1 1 ' ]
check cores [ "$(cat $cpu/cpu*/topology/core_id | tr '\n' ' ')" = '0 1 2 0 1 2 ' ]
check threads is 4 $cpu/cpu4/topology/thread_siblings_list

check generation [ -e /sys/bus/acpi/drivers/vmgenid/ORNG0001:00 ]
check generation-event grep -q ' enabled ' /sys/firmware/acpi/interrupts/gpe05
grep -e 'ACPI.*Error' -e 'ACPI.*Warning' -e 'Firmware Bug' /tmp/dmesg > /tmp/errors
cat /tmp/errors
check acpi-errors [ ! -s /tmp/errors ]
check clock is kvm-clock /sys/devices/system/clocksource/clocksource0/current_clocksource

# A file in memory comes and goes; then the host looks how much memory the guest has.
check balloon [ -e /sys/bus/virtio/drivers/virtio_balloon/bind ]
mkdir /big
mount -t tmpfs -o size=250m tmpfs /big
check big-file dd if=/dev/zero of=/big/file bs=1M count=200
rm /big/file
echo freed
sleep 100000
