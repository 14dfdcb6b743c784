# Runs in the guest while its machine is saved, goes back and is forked: files are written to a file system, read again and
# compared, a program is compiled, fio writes and verifies beside that, and the clock is told.
export PATH=$PATH:/usr/bin
/usr/sbin/mke2fs -q -t ext4 /dev/vda || echo "FAILED mke2fs"
mkdir -p /disk
mount -t ext4 /dev/vda /disk
for number in $(seq 400); do
    echo "int f$number(int x) { return x * $number + (x >> 3) % $((number + 7)); }"
done > /disk/program.c
# Past the page cache, eight requests at a time, each block with its checksum, all of them read again.
(
    runs=0
    while true; do
        /usr/bin/fio --name=verify --filename=/disk/fio --size=1m --bs=4k --rw=randwrite --direct=1 --ioengine=libaio \
            --iodepth=8 --thread --randrepeat=0 --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 \
            --verify_state_save=0 --output=/tmp/fio.log || { cat /tmp/fio.log; echo "FAILED fio"; }
        runs=$((runs + 1))
        echo "fio verified $runs times ."
    done
) &
round=0
while true; do
    dd if=/dev/urandom of=/tmp/new bs=64k count=8 2> /dev/null
    mkdir /disk/new
    cp /tmp/new /disk/new/data
    (cd /disk/new && sha256sum data > sums)
    tcc -nostdinc -c -o /disk/new/program.o /disk/program.c || echo "FAILED compiler"
    sync
    slot=/disk/round-$((round % 6))
    # Whoever has this name is whole, whenever the power is cut.
    rm -rf "$slot"
    mv /disk/new "$slot"
    sync
    echo 3 > /proc/sys/vm/drop_caches
    (cd "$slot" && sha256sum -c -s sums) && cmp -s /tmp/new "$slot/data" || echo "FAILED disk"
    [ -f /tmp/first.o ] || cp "$slot/program.o" /tmp/first.o
    cmp -s /tmp/first.o "$slot/program.o" || echo "FAILED compiler's output"
    dmesg | grep -e 'soft lockup' -e 'detected stall' -e 'BUG:' -e 'EXT4-fs error' && echo "FAILED kernel"
    round=$((round + 1))
    # With spaces around, so that a line that is half written is none.
    echo "round $round at $(date +%s) on $(nproc) CPUs ."
    sleep 0.2
done
