# Runs on the host: waits until the machine NAME has given back what its guest freed, and prints its peak and what is left.
set -e
pid=$(orangery --json show "$NAME" | grep -o '"pid":[0-9]*' | cut -d : -f 2)
for fd in /proc/"$pid"/fd/*; do
    case $(readlink "$fd") in /memfd:guest-ram*) memory=$fd ;; esac
done
until [ "$(stat -L -c %b "$memory")" -lt $((300 * 2048)) ]; do sleep 0.2; done
echo "left: $(($(stat -L -c %b "$memory") / 2048)) MiB"
echo "peak: $(($(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$pid/status") / 1024)) MiB"
