//! The nested host itself: when a guest fails in there, these tell whether the host is at fault.

use std::time::Duration;

use anyhow::Result;
use orangery_tests::guest::Guest;
use orangery_tests::media::Flavour;
use orangery_tests::nested::Host;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_script_s_output_files_and_exit_code_come_back() -> Result<()> {
    Host::with_shared(|host| {
        let output = host.run("echo", "echo out; echo err >&2; echo kept > file; exit 7", LIMIT)?;
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
        assert_eq!(std::fs::read_to_string(output.folder.join("file"))?, "kept\n");
        assert!(output.success().is_err());
        Ok(())
    })
}

#[test]
fn a_script_beyond_its_limit_is_killed_with_all_it_started() -> Result<()> {
    Host::with_shared(|host| {
        let script = "sleep 1000 & echo $! > child; while true; do sleep 1; done";
        assert_eq!(host.run("endless", script, Duration::from_secs(2))?.code, 124);
        let script = "sleep 1000 & echo $!";
        let left = host.run("left", script, LIMIT)?;
        let pid = left.stdout.trim();
        let ask = format!("! kill -0 {pid} 2>&1 || grep -q '^State:.Z' /proc/{pid}/status");
        host.run("gone", &ask, LIMIT)?.success()?;
        Ok(())
    })
}

#[test]
fn qemu_boots_a_stock_kernel_on_the_host_s_kvm() -> Result<()> {
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let script = "echo kernel $(uname -r); ls /sys/bus/virtio/devices; dd if=/dev/hwrng bs=16 count=1 | wc -c";
        let guest = Guest::build(Flavour::Cloud, folder.path(), script, &[])?;
        let line = format!(
            "exec qemu-system-x86_64 -accel kvm -cpu host -m 256 -display none -nodefaults -no-reboot -serial stdio \
             -device virtio-rng-pci -kernel '{}' -initrd '{}' -append 'console=ttyS0 quiet panic=-1'",
            guest.kernel.display(),
            guest.initrd.display()
        );
        let output = host.run("qemu", &line, LIMIT)?.success()?;
        assert!(output.stdout.contains("kernel 6."), "{}", output.stdout);
        assert!(output.stdout.contains("virtio0") && output.stdout.contains("\n16"), "{}", output.stdout);
        Ok(())
    })
}
