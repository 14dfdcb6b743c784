# Runs in the guest, at each boot: reboots in the next way there is. How often it has is on its disk.
ways='acpi kbd triple pci'
count=$(dd if=/dev/vda bs=1 count=1 2> /dev/null)
echo "boot $count"
set -- $ways
shift "$count"
if [ $# -gt 0 ]; then
    printf %s $((count + 1)) | dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2> /dev/null
    echo "$1" > /sys/kernel/reboot/type
    echo "reboot by $1: $(cat /sys/kernel/reboot/type)"
    sleep 1
    reboot -f
fi
echo 'every way works'
