//! The nested host itself: when a guest fails in there, these tell whether the host is at fault. And what takes a computer with
//! other processors than this one's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orangery_tests::crash::Stage;
use orangery_tests::guest::Guest;
use orangery_tests::kvm::Kvm;
use orangery_tests::machine::preamble;
use orangery_tests::media::Flavour;
use orangery_tests::nested::Host;
use orangery_tests::{project, report};

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

/// What is said of a machine that was saved where the processors can do more. Returns what is missing.
fn refusal(said: &str) -> Result<Vec<&str>> {
    let missing = said.split_once("lacks what the guest was told it has: ").and_then(|(_, rest)| rest.split_once(';'));
    let (missing, rest) = missing.with_context(|| format!("it is refused otherwise: {said}"))?;
    ensure!(rest.contains("go on with it on a computer like the one it was saved on"), "{said}");
    let missing: Vec<&str> = missing.split(", ").collect();
    ensure!(missing.iter().all(|one| !one.is_empty()), "{said}");
    Ok(missing)
}

#[test]
fn a_machine_that_was_saved_on_other_processors_is_refused_in_words_and_waits() -> Result<()> {
    Host::with_shared(|host| {
        let golden = project().join("tests/golden/running-1.tar.zst");
        let script = format!(
            "{}mkdir -p \"$ORANGERY_LIBRARY\"\ntar --zstd -xf '{}' -C \"$ORANGERY_LIBRARY\"\n\
             orangery start a --headless 2> said || true\norangery --json show a\n\
             if grep -q lacks said; then\n\
                 orangery stop a --force\n\
                 orangery start a --headless\n\
                 until grep ' holds' \"$ORANGERY_LIBRARY/a/logs/serial.log\"; do sleep 0.2; done\n\
             fi\norangery stop a --force\norangery delete a\norangery trash --empty\n",
            preamble(host)?,
            golden.display()
        );
        let output = host.run("golden", &script, LIMIT)?.success()?;
        let said = std::fs::read_to_string(output.folder.join("said"))?;
        let goes_on = Kvm::detect() == Kvm::Hardware && said.is_empty();
        if !goes_on {
            eprintln!("refused there: {}", refusal(&said)?.join(", "));
            ensure!(output.stdout.contains("\"suspended\""), "it does not wait: {}", output.stdout);
            // Given up, it starts anew.
            ensure!(output.stdout.contains(" holds"), "{}", output.stdout);
        }
        Ok(())
    })
}

#[test]
fn a_machine_that_was_saved_there_is_refused_here_in_words_and_waits() -> Result<()> {
    match Kvm::detect() {
        Kvm::Software => {}
        // There and here are one.
        Kvm::Hardware => return Ok(()),
        Kvm::None => {
            let test = "a_machine_that_was_saved_there_is_refused_here_in_words_and_waits";
            report::skip(2, test, "there is no usable /dev/kvm");
            return Ok(());
        }
    }
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let kernel = folder.path().join("probe.elf");
        std::fs::write(&kernel, orangery_assets::PROBE_ELF)?;
        let script = format!(
            "{}orangery create there --memory 64 --cpus 1 --new-disk 1M --kernel '{}' --cmdline 'then=watch watchmib=1'\n\
             orangery start there --headless\n\
             until grep ' holds' \"$ORANGERY_LIBRARY/there/logs/serial.log\"; do sleep 0.2; done\n\
             orangery suspend there\ntar --sparse -cf there.tar -C \"$ORANGERY_LIBRARY\" there\n\
             orangery delete there\norangery trash --empty\n",
            preamble(host)?,
            kernel.display()
        );
        let output = host.run("saved", &script, LIMIT)?.success()?;
        let stage = Stage::new()?;
        let unpacked = std::process::Command::new("tar")
            .args([
                "-C".as_ref(),
                stage.folder.as_os_str(),
                "-xf".as_ref(),
                output.folder.join("there.tar").as_os_str(),
            ])
            .status()?;
        ensure!(unpacked.success(), "tar does not unpack it");
        let start = stage.run(&["start", "there", "--headless"])?;
        ensure!(!start.status.success(), "it goes on with other processors");
        eprintln!("refused here: {}", refusal(&String::from_utf8_lossy(&start.stderr))?.join(", "));
        ensure!(stage.ok(&["show", "there", "--json"])?.contains("\"suspended\""), "it does not wait");
        Ok(())
    })
}
