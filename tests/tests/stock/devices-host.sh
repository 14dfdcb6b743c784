# Runs on the host, in a network of its own: boots the guest, then looks at what it did to its disk.
# KERNEL, INITRD, CDROM: files; SCRATCH: a folder; ./pattern: 1 MiB.
if [[ -z ${INSIDE-} ]]; then
    options=(--net)
    [[ $EUID -eq 0 ]] || options+=(--map-root-user)
    INSIDE=yes exec unshare "${options[@]}" bash "$0"
fi
set -e
disk=$SCRATCH/disk-$$.img
sata=$SCRATCH/sata-$$.img
nvme=$SCRATCH/nvme-$$.img
readonly=$SCRATCH/readonly-$$.img
readonly_sata=$SCRATCH/readonly-sata-$$.img
readonly_nvme=$SCRATCH/readonly-nvme-$$.img
for ((i = 0; i < 16; i++)); do cat pattern; done > "$disk"
cp "$disk" "$sata"
cp "$disk" "$nvme"
truncate --size 1M "$readonly" "$readonly_sata" "$readonly_nvme"

ip tuntap add tap0 mode tap
ip address add 10.9.8.1/24 dev tap0
ip link set tap0 up
busybox httpd -f -p 10.9.8.1:8080 -h . &

orangery boot --headless --kernel "$KERNEL" --initrd "$INITRD" --cmdline 'console=ttyS0 quiet panic=-1' \
    --memory 512 --cpus 2 --disk "$disk" --disk "$readonly,ro" --cdrom "$CDROM" --net tap=tap0 \
    --disk "$sata,bus=sata" --disk "$readonly_sata,ro,bus=sata" \
    --disk "$nvme,bus=nvme" --disk "$readonly_nvme,ro,bus=nvme"

cmp --bytes 1M --ignore-initial 0:8M pattern "$disk" && echo 'ok disk-copied'
cmp --bytes 1M --ignore-initial 0:4M /dev/zero "$disk" && echo 'ok disk-discarded'
cmp --bytes 1M --ignore-initial 0:5M pattern "$disk" && echo 'ok disk-neighbour'

# Only the generic kernel has drivers for the others.
if [[ -n ${SATA-} ]]; then
    cmp --bytes 1M --ignore-initial 0:8M pattern "$sata" && echo 'ok sata-copied'
    cmp --bytes 1M --ignore-initial 0:4M /dev/zero "$sata" && echo 'ok sata-trimmed'
    cmp --bytes 1M --ignore-initial 0:5M pattern "$sata" && echo 'ok sata-neighbour'
    cmp --bytes 1M --ignore-initial 0:8M pattern "$nvme" && echo 'ok nvme-copied'
    cmp --bytes 1M --ignore-initial 0:4M /dev/zero "$nvme" && echo 'ok nvme-discarded'
    cmp --bytes 1M --ignore-initial 0:5M pattern "$nvme" && echo 'ok nvme-neighbour'
fi
cmp --bytes 1M /dev/zero "$readonly_sata" && echo 'ok sata-untouched'
cmp --bytes 1M /dev/zero "$readonly_nvme" && echo 'ok nvme-untouched'
