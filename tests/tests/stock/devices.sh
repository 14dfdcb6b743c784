# Runs in the guest: tries every device with the kernel's own driver, and prints 'ok WHAT' or 'FAILED WHAT' for each.

check() {
    what=$1
    shift
    if "$@"; then echo "ok $what"; else echo "FAILED $what"; fi
}
has() { grep -q "$1" "$2"; }
refused() { ! "$@" 2> /dev/null; }

check cpus [ "$(nproc)" = 2 ]

# The first disk has a pattern at its start: the guest copies it to 8 MiB, and the test compares the file.
check disk-size [ "$(cat /sys/block/vda/size)" = 32768 ]
check disk-copy dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=128 conv=fsync
check disk-discard blkdiscard -o 4194304 -l 1048576 /dev/vda
check disk-readonly [ "$(cat /sys/block/vdb/ro)" = 1 ]
check disk-refuses refused dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync

check rng-driver has virtio /sys/class/misc/hw_random/rng_current
check rng [ "$(dd if=/dev/hwrng bs=64 count=1 2> /dev/null | wc -c)" = 64 ]

check console [ -c /dev/hvc0 ]
check console-write sh -c 'echo hello from the guest > /dev/hvc0'

check input-ps2 has 'AT Translated Set 2 keyboard' /proc/bus/input/devices
check input-keyboard has 'Name="Orangery Keyboard"' /proc/bus/input/devices
check input-tablet has 'Name="Orangery Tablet"' /proc/bus/input/devices
check power-button has 'Name="Power Button"' /proc/bus/input/devices

check net-address ip address add 10.9.8.2/24 dev eth0
check net-up ip link set eth0 up
check net-ping ping -c 3 -W 10 10.9.8.1
check net-download sh -c 'wget -q -O - http://10.9.8.1:8080/pattern | cmp - /pattern'

if [ -e /modules/virtio_gpu.ko ]; then
    check gpu [ -c /dev/dri/card0 ]
    check gpu-connected has '^connected' /sys/class/drm/card0-Virtual-1/status
    check gpu-mode has '^1280x800$' /sys/class/drm/card0-Virtual-1/modes
    check gpu-edid [ "$(wc -c < /sys/class/drm/card0-Virtual-1/edid)" -ge 128 ]
    check gpu-console has '1280,800' /sys/class/graphics/fb0/virtual_size
    check cdrom mount -t iso9660 -o ro /dev/sr0 /mnt
    check cdrom-read [ -d /mnt/boot/grub ]
    check cdrom-whole sh -c 'dd if=/dev/sr0 bs=64k | wc -c > /tmp/size; [ "$(cat /tmp/size)" = $(($(cat /sys/block/sr0/size) * 512)) ]'

    # As the first virtio disk. The kernel may find the read-only one first.
    sata=sda other=sdb
    [ "$(cat /sys/block/sda/size)" = 32768 ] || sata=sdb other=sda
    check sata-size [ "$(cat /sys/block/$sata/size)" = 32768 ]
    check sata-queue [ "$(cat /sys/block/$sata/device/queue_depth)" -ge 31 ]
    check sata-solid-state [ "$(cat /sys/block/$sata/queue/rotational)" = 0 ]
    check sata-cache has 'write back' /sys/block/$sata/queue/write_cache
    check sata-copy dd if=/dev/$sata of=/dev/$sata bs=64k count=16 seek=128 conv=fsync
    check sata-trim blkdiscard -o 4194304 -l 1048576 /dev/$sata
    check sata-read sh -c "dd if=/dev/$sata bs=1M count=1 | cmp - /pattern"
    check sata-refuses refused dd if=/dev/zero of=/dev/$other bs=4k count=1 conv=fsync

    nvme=nvme0n1 other=nvme1n1
    [ "$(cat /sys/block/$nvme/size)" = 32768 ] || nvme=nvme1n1 other=nvme0n1
    check nvme-size [ "$(cat /sys/block/$nvme/size)" = 32768 ]
    check nvme-queues [ "$(cat /sys/block/$nvme/device/queue_count)" = 3 ]
    check nvme-interrupts has "${nvme%n1}q2" /proc/interrupts
    check nvme-cache has 'write back' /sys/block/$nvme/queue/write_cache
    check nvme-zeroes [ "$(cat /sys/block/$nvme/queue/write_zeroes_max_bytes)" -gt 0 ]
    # A processor each, so that both queues are used; large enough for lists of either kind.
    check nvme-copy taskset 1 dd if=/dev/$nvme of=/dev/$nvme bs=256k count=2 seek=32 iflag=direct oflag=direct
    check nvme-copy-2 taskset 2 dd if=/dev/$nvme of=/dev/$nvme bs=4k skip=128 count=128 seek=2176 conv=fsync
    check nvme-used-both [ "$(awk -v q="${nvme%n1}q" '$0 ~ q "[12]$" && $2 + $3 > 0' /proc/interrupts | wc -l)" = 2 ]
    check nvme-discard blkdiscard -o 4194304 -l 1048576 /dev/$nvme
    check nvme-read sh -c "dd if=/dev/$nvme bs=1M count=1 | cmp - /pattern"
    check nvme-readonly [ "$(cat /sys/block/$other/ro)" = 1 ]
    check nvme-refuses refused dd if=/dev/zero of=/dev/$other bs=4k count=1 conv=fsync
    check nvme-reset sh -c "echo 1 > /sys/block/$nvme/device/reset_controller"
    check nvme-after-reset sh -c "dd if=/dev/$nvme bs=1M count=1 iflag=direct | cmp - /pattern"
fi
echo finished
