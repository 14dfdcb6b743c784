# Runs in the guest, on a machine with Hyper-V's interfaces: what the kernel makes of them.
dmesg > /tmp/dmesg
grep -e 'Hypervisor detected' -e 'Hyper-V' /tmp/dmesg
for what in 'Hypervisor detected: Microsoft Hyper-V' 'Hyper-V: privilege flags' 'Hyper-V: LAPIC Timer Frequency' 'Using enlightened APIC'; do
    if grep -q "$what" /tmp/dmesg; then echo "ok $what"; else echo "FAILED $what"; fi
done
echo "clocks: $(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)"
echo "interrupts: $(grep -i 'hyper' /proc/interrupts | tr -s ' ' | tr '\n' ';')"
# The clock of the reference page goes on.
before=$(date +%s%N); sleep 1; after=$(date +%s%N)
if [ "$after" -gt "$before" ]; then echo 'ok time goes on'; else echo 'FAILED time'; fi
