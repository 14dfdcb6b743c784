#!/usr/bin/env bash
# Makes disc.iso, Debian's network installer as a disc that starts by BIOS (ISOLINUX) and by UEFI (shim and GRUB), laid out as
# Debian's own mini.iso is. Arguments: the folder to make it in, the installer's tree for network starts, and the files
# isolinux.bin, shim and GRUB in its form for CDs.
set -euo pipefail
cd "$1"
tree=$2 isolinux=$3 shim=$4 grub=$5

mkdir disc disc/.disk disc/boot
cp -R "$tree/debian-installer" disc/
screens=debian-installer/amd64/boot-screens
cp "$isolinux" "$tree/$screens/ldlinux.c32" "$tree/$screens/splash.png" disc/
cp "$tree/$screens/syslinux.cfg" disc/isolinux.cfg
# GRUB knows its disc by the first, and finds its menu, fonts and modules in the second.
echo 'Debian network installer' > disc/.disk/info
cp -R "$tree/debian-installer/amd64/grub" disc/boot/grub

truncate --size 8M efi.img
mformat -i efi.img -v EFI ::
mmd -i efi.img ::/EFI ::/EFI/BOOT
mcopy -i efi.img "$shim" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i efi.img "$grub" ::/EFI/BOOT/grubx64.efi
mv efi.img disc/efi.img

xorriso -report_about WARNING -as mkisofs -R -V INSTALLER -o disc.iso \
    -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
    -eltorito-alt-boot -e efi.img -no-emul-boot disc
rm -rf disc
