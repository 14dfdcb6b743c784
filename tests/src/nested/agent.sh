# Runs in the nested host what the tests ask for over the second serial port, one line each:
#   run STEP SECONDS   runs the file 'script' in the exchange's folder STEP, answers 'done STEP CODE' when it has ended
#   halt               ends the machine
# Several scripts may run at a time. All that a script leaves running ends with it.
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 XDG_RUNTIME_DIR=/run/user/0
exchange=$(< /run/exchange)

halt() {
    sync
    echo o > /proc/sysrq-trigger
    sleep 60
}

# QEMU's emulation of SVM now and then takes a guest's exit twice, the second time with the host's registers as the guest's:
# that guest faults for ever at the host's own instruction behind VMRUN. Where that is seen the machine is of no use any more,
# and ends by a panic, so that the tests start another.
watch_for_mix_up() {
    local trace=/sys/kernel/tracing run
    mount -t tracefs none "$trace" 2> /dev/null
    run=$(awk '$3 == "__svm_vcpu_run" { print $1 }' /proc/kallsyms)
    cd "$trace/events/kvm/kvm_exit" || return
    echo 64 > "$trace/buffer_size_kb"
    printf 'guest_rip >= 0x%s && guest_rip < 0x%x && exit_reason == 0x400' "$run" $((16#$run + 512)) > filter
    echo 1 > enable
    while sleep 1; do
        if [[ $(grep -c 'kvm_exit:' "$trace/trace") -gt 100 ]]; then
            echo 'nested: the emulator has mixed up a guest with its host' > /dev/kmsg
            echo c > /proc/sysrq-trigger
        fi
    done
}
watch_for_mix_up > /dev/null 2>&1 3>&- &

# The tests see by its age whether this machine is still there.
while : > "$exchange/alive" && sleep 5; do :; done 3>&- &

if grep -q orangery.shell /proc/cmdline; then
    cd "$exchange/../.."
    TERM=linux setsid --ctty bash -i < /dev/ttyS0 > /dev/ttyS0 2>&1
    halt
fi

exec 3<> /dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo ready >&3
while read -r verb step seconds <&3; do
    case $verb in
    run)
        (
            exec 3>&-
            cd "$exchange/$step" || exit
            # timeout(1) leads a process group of its own, which the script and its children share.
            timeout --kill-after=5 "$seconds" bash ./script < /dev/null > stdout 2> stderr &
            group=$!
            wait "$group"
            code=$?
            kill -KILL -- "-$group" 2> /dev/null
            echo "done $step $code" > /dev/ttyS1
        ) &
        ;;
    halt) halt ;;
    esac
done
