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
