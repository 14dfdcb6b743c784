# Runs on the host: waits until the machine NAME has given back three quarters of the 200 MiB that its guest freed.
set -e
pid=$(orangery --json show "$NAME" | grep -o '"pid":[0-9]*' | cut -d : -f 2)
for fd in /proc/"$pid"/fd/*; do
    case $(readlink "$fd") in /memfd:guest-ram*) memory=$fd ;; esac
done
mebibytes() { echo $(($(stat -L -c %b "$memory") / 2048)); }
peak=$(($(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$pid/status") / 1024))
until [ "$(mebibytes)" -lt $((peak - 150)) ]; do sleep 0.2; done
echo "at most $peak MiB, now $(mebibytes) MiB"
