#!/usr/bin/env bash
# Makes disk.img, a Debian system that starts by BIOS, by UEFI and by Secure Boot, in the folder that is the argument. At
# its first start it says what it runs on and restarts; at the second it switches itself off.
set -euo pipefail
cd "$1"
SUITE=bookworm

# Where apt gets packages on this machine, and how.
sources=(/etc/apt/sources.list.d/debian.sources /etc/apt/sources.list)
for file in "${sources[@]}"; do [[ -s $file ]] && mirror=$file && break; done
apt-config dump | grep '^Acquire::' > apt.conf

cat > say << 'SAY'
#!/bin/sh
# Runs once the system is up; /matrix-started remembers the first start. It speaks through the kernel's log, which is on
# the screen and on the serial port: the port itself is the login's, which hangs up whoever else has it open.
say() { echo "<1>matrix: $*" > /dev/kmsg; }
[ -d /sys/firmware/efi ] && firmware=UEFI || firmware=BIOS
dmesg | grep -qi 'secure boot enabled' && firmware='Secure Boot'
say "$firmware, $(nproc) CPUs, root on $(findmnt --noheadings --output SOURCE /)"
[ ! -e /dev/tpmrm0 ] || say "TPM says $(tpm2_getrandom --hex 8 | grep -c '^[0-9a-f]\{16\}$')"
# The login asks for a name before it ends; until it does it is still systemd, as "(agetty)".
for _ in $(seq 150); do
    pid=$(systemctl show --property MainPID --value serial-getty@ttyS0)
    [ "$(cat "/proc/$pid/comm" 2> /dev/null)" != agetty ] || break
    sleep 0.2
done
sleep 3
if [ ! -e /matrix-started ]; then
    touch /matrix-started
    sync
    say 'restarting'
    systemctl reboot
else
    say 'switching off'
    systemctl poweroff
fi
SAY
cat > matrix.service << 'UNIT'
[Unit]
After=multi-user.target
[Service]
# No job for systemd to wait for: logins begin when there is none.
Type=exec
ExecStart=/usr/local/bin/say
[Install]
WantedBy=multi-user.target
UNIT
cat > grub.cfg << 'GRUB'
# The menu is on the serial port too; a UEFI's console is there already.
if [ "$grub_platform" = pc ]; then
    serial --unit=0 --speed=115200
    terminal_output console serial
fi
set timeout=1
menuentry 'Debian' {
    linux /vmlinuz root=LABEL=matrix rw console=tty0 console=ttyS0 quiet
    initrd /initrd.img
}
GRUB

export SOURCE_DATE_EPOCH=1700000000
mmdebstrap --quiet --variant=minbase --format=ext2 --aptopt=apt.conf \
    --include=linux-image-amd64,systemd-sysv,udev,tpm2-tools,shim-signed,grub-efi-amd64-signed,grub-pc-bin \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt=force-unsafe-io --customize-hook='mkdir -p "$1/boot/grub"' \
    --customize-hook='copy-in grub.cfg /boot/grub' --customize-hook='copy-in say /usr/local/bin' \
    --customize-hook='copy-in matrix.service /etc/systemd/system' \
    --customize-hook='chmod +x "$1/usr/local/bin/say"' \
    --customize-hook='chroot "$1" systemctl enable matrix.service' \
    --customize-hook='chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer' \
    --customize-hook='echo matrix > "$1/etc/hostname"; echo LABEL=matrix / ext2 defaults 0 1 > "$1/etc/fstab"' \
    --customize-hook='copy-out /usr/lib/shim/shimx64.efi.signed .' \
    --customize-hook='copy-out /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed .' \
    --customize-hook='copy-out /usr/lib/grub/i386-pc .' \
    "$SUITE" root.ext2 "$mirror"
e2label root.ext2 matrix

# A file system for UEFI: shim, which Secure Boot trusts, and GRUB, which shim trusts.
truncate --size 32M esp.fat
mformat -i esp.fat -v ESP ::
mmd -i esp.fat ::/EFI ::/EFI/BOOT ::/EFI/debian
mcopy -i esp.fat shimx64.efi.signed ::/EFI/BOOT/BOOTX64.EFI
mcopy -i esp.fat grubx64.efi.signed ::/EFI/BOOT/grubx64.efi
printf 'search --label matrix --set=root\nconfigfile /boot/grub/grub.cfg\n' > search.cfg
mcopy -i esp.fat search.cfg ::/EFI/debian/grub.cfg

# GRUB for a BIOS: the boot sector is told where the core image is, and the core image where it goes on (GRUB's boot.S
# and diskboot.S: the sector at 0x5c, the block list's at 0x1f4).
core=2048
grub-mkimage --directory=i386-pc --format=i386-pc --output=core.img --prefix='(hd0,gpt3)/boot/grub' \
    biosdisk part_gpt ext2 normal linux configfile serial terminal test
little_endian() { for shift in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %02x $(($1 >> shift & 255)))"; done; }
little_endian $((core + 1)) | dd of=core.img bs=1 seek=$((0x1f4)) conv=notrunc status=none

sectors() { echo $((($(stat --format %s "$1") + 511) / 512)); }
esp=4096
root=$((esp + $(sectors esp.fat)))
truncate --size $(((root + $(sectors root.ext2) + 2048) * 512)) new.img
sfdisk --quiet new.img << PARTITIONS
label: gpt
start=$core, size=2048, type=21686148-6449-6E6F-744E-656564454649
start=$esp, size=$(sectors esp.fat), type=U
start=$root, size=$(sectors root.ext2), type=L
PARTITIONS
place() { dd if="$1" of=new.img bs=512 seek="$2" conv=notrunc,sparse status=none; }
place core.img "$core"
place esp.fat "$esp"
place root.ext2 "$root"
dd if=i386-pc/boot.img of=new.img bs=1 count=440 conv=notrunc status=none
little_endian "$core" | dd of=new.img bs=1 seek=$((0x5c)) conv=notrunc status=none
mv new.img disk.img
rm -rf root.ext2 esp.fat core.img i386-pc ./*.signed say matrix.service ./*.cfg apt.conf
