# Runs in the guest: what the kernel and tpm2-tools see of the TPM; prints 'ok WHAT' or 'FAILED WHAT' for each.

check() {
    what=$1
    shift
    if "$@"; then echo "ok $what"; else echo "FAILED $what"; fi
}
# Through the kernel's resource manager, as a system's programs do.
export TPM2TOOLS_TCTI=device:/dev/tpmrm0
tpm() { /usr/bin/tpm2 "$@"; }

check device [ -c /dev/tpm0 ]
check version [ "$(cat /sys/class/tpm/tpm0/tpm_version_major)" = 2 ]
check driver [ "$(basename "$(readlink /sys/class/tpm/tpm0/device/driver)")" = tpm_crb ]
check random [ "$(tpm getrandom 16 | wc -c)" = 16 ]
check maker sh -c '/usr/bin/tpm2 getcap properties-fixed | grep -A 2 TPM2_PT_MANUFACTURER | grep IBM'

pcr=/sys/class/tpm/tpm0/pcr-sha256/16
check pcr-empty [ "$(tr -d 0 < $pcr)" = '' ]
# SHA-256 of 32 zero bytes and 32 of 0xaa.
check extend tpm pcrextend 16:sha256=$(printf 'aa%.0s' $(seq 32))
{ head -c 32 /dev/zero; head -c 32 /dev/zero | tr '\0' '\252'; } | sha256sum | cut -d ' ' -f 1 | tr a-f A-F > /tmp/expected
check extended cmp $pcr /tmp/expected

cd /tmp
check key tpm createprimary -Q -C o -G ecc -c key
check seal sh -c 'echo secret | /usr/bin/tpm2 create -Q -C key -i - -u public -r private'
check load tpm load -Q -C key -u public -r private -c sealed
check unseal [ "$(tpm unseal -c sealed)" = secret ]
