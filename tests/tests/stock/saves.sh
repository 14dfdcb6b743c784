# Runs in the guest while its machine is saved, goes back and is forked: the disk is written and read all the time, and the
# clock is told.
round=0
while true; do
    dd if=/dev/urandom of=/tmp/new bs=64k count=8 2> /dev/null
    dd if=/tmp/new of=/dev/vda bs=64k conv=fsync 2> /dev/null
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda of=/tmp/back bs=64k count=8 2> /dev/null
    cmp -s /tmp/new /tmp/back || echo "FAILED disk"
    dmesg | grep -e 'soft lockup' -e 'detected stall' -e 'BUG:' && echo "FAILED kernel"
    round=$((round + 1))
    # With spaces around, so that a line that is half written is none.
    echo "round $round at $(date +%s) on $(nproc) CPUs ."
    sleep 0.2
done
