# Runs in the guest, on a machine with Hyper-V's interfaces: what the kernel makes of them.
check() {
    name=$1
    shift
    if "$@"; then echo "ok $name"; else echo "FAILED $name"; fi
}
dmesg > /tmp/dmesg
grep -e 'Hypervisor detected' -e 'Hyper-V' -e 'hyperv' /tmp/dmesg
check detected grep -q 'Hypervisor detected: Microsoft Hyper-V' /tmp/dmesg
check features grep -q 'Hyper-V: privilege flags' /tmp/dmesg
check apic-frequency grep -q 'Hyper-V: LAPIC Timer Frequency' /tmp/dmesg
check apic grep -q 'Hyper-V: Using enlightened APIC' /tmp/dmesg
clock=/sys/devices/system/clocksource/clocksource0
cat $clock/available_clocksource
check clock grep -q hyperv_clocksource $clock/available_clocksource
# The clock of the reference counter goes on.
for name in $(cat $clock/available_clocksource); do case $name in hyperv*) echo "$name" > $clock/current_clocksource ;; esac; done
cat $clock/current_clocksource
before=$(cut -d ' ' -f 1 /proc/uptime)
sleep 1
check clock-goes-on [ "$before" != "$(cut -d ' ' -f 1 /proc/uptime)" ]
check cpus [ "$(nproc)" = 2 ]
