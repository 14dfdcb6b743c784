# A machine with Debian's kernel is suspended, goes back to a snapshot and is forked; its guest goes on each time.
set -eu
log() { cat "$ORANGERY_LIBRARY/$1/logs/serial.log"; }
last() { log "$1" | grep -o 'round [0-9]* at [0-9]* on 2 CPUs \.' | tail -n 1; }
number() { set -- $(last "$1") 0 0; echo "$2"; }
# How often fio has ended well.
verified() { set -- $(log "$1" | grep -o 'fio verified [0-9]* times \.' | tail -n 1) 0 0 0; echo "$3"; }
# Waits until machine $1 has done more than $2 rounds, or of what $3 counts, in this life of its log.
wait_for() {
    for _ in $(seq 900); do
        if log "$1" | grep FAILED; then log "$1" | tail -n 60; exit 1; fi
        if [ "$("${3-number}" "$1")" -gt "$2" ]; then return; fi
        sleep 0.2
    done
    echo "$1 does not go on after $2 (${3-number})"
    log "$1" | tail -n 40
    exit 1
}
# How far the guest's clock is behind this computer's, seconds.
behind() { set -- $(last "$1"); echo $(($(date +%s) - $4)); }

orangery create saved --memory 512 --cpus 2 --net none --new-disk 32M --kernel "$KERNEL" --initrd "$INITRD" \
    --cmdline 'console=ttyS0 quiet panic=-1'
orangery start saved --headless
wait_for saved 2
echo "it works after $SECONDS s"
wait_for saved 0 verified
echo "fio has verified after $SECONDS s"
before=$(behind saved)
orangery suspend saved
round=$(number saved)
sleep 15
orangery start saved --headless
# The first round's end may have been timed before the machine was saved, and told after.
wait_for saved $((round + 1))
after=$(behind saved)
echo "the clock was $before s behind, and is $after s behind after 15 s"
[ $((after - before)) -lt 8 ] && echo "ok clock"
echo "ok suspend"

orangery snapshot take saved point
round=$(number saved)
wait_for saved $((round + 2))
orangery fork saved other
wait_for saved $((round + 4))
wait_for other $((round + 2))
echo "ok fork"
orangery stop saved --force
orangery snapshot restore saved point
orangery start saved --headless
wait_for saved $((round - 2))
# From there, and not from where it was stopped.
[ "$(log saved | grep -o 'round [0-9]* at' | head -n 1 | cut -d ' ' -f 2)" -le $((round + 2)) ] && echo "ok restore"
now=$(number saved)
orangery snapshot delete saved point
wait_for saved $((now + 1))
wait_for other $((round + 4))
echo "ok delete"
echo "all else is done after $SECONDS s"
# Each was in the middle of it when it was saved.
for machine in saved other; do
    wait_for "$machine" "$(verified "$machine")" verified
    echo "$machine: fio verified $(verified "$machine") times, after $SECONDS s"
done
echo "ok fio"
grep -h stopped "$ORANGERY_LIBRARY"/saved/logs/orangery.log* || true
orangery stop saved --force
orangery stop other --force

# What a guest had made durable when its power was cut is there, and its file system is whole.
for machine in saved other; do
    disk=$(orangery --json show "$machine" | grep -o '"[^"]*/disks/[^"]*"' | head -n 1 | tr -d '"')
    orangery disk convert "$disk" "$machine.raw" --format raw
    # The first time the journal is replayed.
    /usr/sbin/e2fsck -f -y "$machine.raw" > "$machine.fsck" 2>&1 || true
    /usr/sbin/e2fsck -f -n "$machine.raw" >> "$machine.fsck" 2>&1
    mkdir "$machine.files"
    /usr/sbin/debugfs -R "rdump / $machine.files" "$machine.raw" 2> /dev/null
    rounds=0
    for round in "$machine.files"/round-*; do
        (cd "$round" && sha256sum --check --quiet sums)
        rounds=$((rounds + 1))
    done
    [ "$rounds" -gt 0 ]
done
echo "ok disks"
