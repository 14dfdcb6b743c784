# What a system finds that UEFI has started; each line is one thing that is as it should be.
say() { echo "ok $1" > /dev/console; }
dmesg > /log
[ -d /sys/firmware/efi ] && say efi
grep -q 'Secure boot enabled' /log && say secure-boot
# The flash chip and the configuration space are reserved, so that the kernel uses them for nothing.
grep -q 'BIOS-e820: .*ffc00000-.*reserved' /log && say flash
grep -q 'MMCONFIG at .* reserved' /log && say ecam
# Until the driver of the graphics card came, the firmware's frame buffer was the console.
grep -q 'efifb: probing for efifb\|fb0: EFI VGA frame buffer\|simple-framebuffer' /log && say 'console efi'
grep -q virtio_gpudrmfb /proc/fb && say gpu
say 'done'
