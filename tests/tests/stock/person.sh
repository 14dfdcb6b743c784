# Runs in the guest: what a person at the console does. The screen gets the VGA font, so that the test can read it.
echo "release $(uname -r)"
loadfont < /font.psf
printf '\033[2J\033[Hplease type a line\n' > /dev/tty1
echo ready-for-keys
read -r line < /dev/tty1
echo "you typed: $line" > /dev/tty1
echo "typed: $line"

# The power button is an input device: wait for its first event.
button=$(sed -n '/Name="Power Button"/,/^$/s/.*\(event[0-9]*\).*/\1/p' /proc/bus/input/devices | head -n 1)
echo ready-for-power-button
dd if="/dev/input/$button" of=/dev/null bs=24 count=1 2> /dev/null
echo pressed
