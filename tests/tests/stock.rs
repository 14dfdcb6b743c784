//! Debian's kernels on our machine, with their own drivers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use orangery_tests::checks;
use orangery_tests::guest::Guest;
use orangery_tests::machine::{Machine, preamble};
use orangery_tests::media::{self, Flavour};
use orangery_tests::nested::Host;
use orangery_tests::screen::Font;

/// Emulated hosts are slow; this only stops what hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// A mebibyte in which no two blocks are alike.
fn pattern() -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..1 << 20).map(next).collect()
}

/// Boots a kernel with a script that tries every device, and expects these checks, in this order.
fn every_device_works(host: &Host, flavour: Flavour, expected: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
    let pattern = pattern();
    let guest = Guest::build(flavour, folder.path(), include_str!("stock/devices.sh"), &[("pattern", &pattern)])?;
    let pattern_file = folder.path().join("pattern");
    fs::write(&pattern_file, &pattern)?;
    let script = format!(
        "{}cp '{}' pattern\nexport KERNEL='{}' INITRD='{}' CDROM='{}' SATA={}\n{}",
        preamble(host)?,
        pattern_file.display(),
        guest.kernel.display(),
        guest.initrd.display(),
        media::grub_rescue_iso()?.display(),
        if flavour == Flavour::Generic { "yes" } else { "" },
        include_str!("stock/devices-host.sh"),
    );
    let output = host.run("devices", &script, LIMIT)?;
    output.checks(expected)?;
    output.success()?;
    Ok(())
}

/// What every kernel can try, in the order of stock/devices.sh.
const COMMON: &[&str] = &[
    "cpus",
    "disk-size",
    "disk-copy",
    "disk-discard",
    "disk-readonly",
    "disk-refuses",
    "rng-driver",
    "rng",
    "console",
    "console-write",
    "input-ps2",
    "input-keyboard",
    "input-tablet",
    "power-button",
    "net-address",
    "net-up",
    "net-ping",
    "net-download",
];
/// What the generic kernel can try as well.
const GENERIC: &[&str] = &[
    "gpu",
    "gpu-connected",
    "gpu-mode",
    "gpu-edid",
    "gpu-console",
    "cdrom",
    "cdrom-read",
    "cdrom-whole",
    "sata-size",
    "sata-queue",
    "sata-solid-state",
    "sata-cache",
    "sata-copy",
    "sata-trim",
    "sata-read",
    "sata-refuses",
    "nvme-size",
    "nvme-queues",
    "nvme-interrupts",
    "nvme-cache",
    "nvme-zeroes",
    "nvme-copy",
    "nvme-copy-2",
    "nvme-used-both",
    "nvme-discard",
    "nvme-read",
    "nvme-readonly",
    "nvme-refuses",
    "nvme-reset",
    "nvme-after-reset",
];
/// What the host sees afterwards, and what only after the generic kernel.
const AFTER: &[&str] = &["disk-copied", "disk-discarded", "disk-neighbour"];
const AFTER_GENERIC: &[&str] =
    &["sata-copied", "sata-trimmed", "sata-neighbour", "nvme-copied", "nvme-discarded", "nvme-neighbour"];
/// After any.
const LAST: &[&str] = &["sata-untouched", "nvme-untouched"];

#[test]
fn debian_s_cloud_kernel_drives_every_device_it_knows() -> Result<()> {
    Host::with_shared(|host| every_device_works(host, Flavour::Cloud, &[COMMON, AFTER, LAST].concat()))
}

#[test]
fn debian_s_generic_kernel_drives_every_device() -> Result<()> {
    let expected = [COMMON, GENERIC, AFTER, AFTER_GENERIC, LAST].concat();
    Host::with_shared(|host| every_device_works(host, Flavour::Generic, &expected))
}

#[test]
fn debian_s_kernel_and_tpm2_tools_use_the_tpm() -> Result<()> {
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        // The second is loaded by name.
        let programs = ["/usr/bin/tpm2", "/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0"].map(Path::new);
        let script = include_str!("stock/tpm.sh");
        let guest = Guest::with_programs(Flavour::Generic, folder.path(), script, &[], |fs| {
            programs.into_iter().try_for_each(|program| fs.program(program))
        })?;
        let (kernel, initrd) = (guest.kernel.display(), guest.initrd.display());
        let script = format!(
            "{}exec orangery boot --headless --tpm --memory 512 --cpus 1 --kernel '{kernel}' --initrd '{initrd}' \
             --cmdline 'console=ttyS0 quiet panic=-1'",
            preamble(host)?
        );
        let output = host.run("tpm", &script, LIMIT)?.success()?;
        output.checks(&[
            "device",
            "version",
            "driver",
            "random",
            "maker",
            "pcr-empty",
            "extend",
            "extended",
            "key",
            "seal",
            "load",
            "unseal",
        ])
    })
}

#[test]
fn a_person_reads_the_screen_types_a_line_and_presses_the_power_button() -> Result<()> {
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let font = Font::vga()?.psf();
        let script = include_str!("stock/person.sh");
        let guest = Guest::build(Flavour::Generic, folder.path(), script, &[("font.psf", &font)])?;
        let (kernel, initrd) = (guest.kernel.display(), guest.initrd.display());
        let flags = format!(
            "--memory 512 --cpus 2 --net none --kernel '{kernel}' --initrd '{initrd}' --cmdline 'console=ttyS0 quiet panic=-1'"
        );
        let mut machine = Machine::start(host, "person", &flags)?;
        machine.wait_for_serial("ready-for-keys")?;
        machine.wait_for_screen("the guest's question", |text| text.contains("please type a line"))?;
        machine.verb("send-keys", "'Hello, World! 123' enter")?.success()?;
        let serial = machine.wait_for_serial("ready-for-power-button")?;
        assert!(serial.contains("typed: Hello, World! 123\r\n"), "{serial}");
        machine.wait_for_screen("the guest's answer", |text| text.contains("you typed: Hello, World! 123"))?;
        machine.verb("stop", "")?.success()?;
        machine.wait_for_serial("pressed")?;
        machine.wait()?.success()?;
        Ok(())
    })
}

/// What a guest finds the machine to be: its identity, its CPUs' arrangement, its ACPI devices; and memory that it frees
/// goes back to the host.
#[test]
fn debian_sees_the_machine_s_identity_and_topology_and_gives_memory_back() -> Result<()> {
    const CHECKS: &[&str] = &[
        "dmi-maker",
        "dmi-product",
        "dmi-chassis",
        "dmi-version",
        "cpus",
        "sockets",
        "cores",
        "threads",
        "generation",
        "generation-event",
        "acpi-errors",
        "clock",
        "balloon",
        "big-file",
    ];
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        // The cloud kernel has no driver of the generation id.
        let guest = Guest::build(Flavour::Generic, folder.path(), include_str!("stock/platform.sh"), &[])?;
        let (kernel, initrd) = (guest.kernel.display(), guest.initrd.display());
        let flags = format!(
            "--memory 512 --topology 2x3x1 --net none --kernel '{kernel}' --initrd '{initrd}' \
             --cmdline 'console=ttyS0 quiet panic=-1'"
        );
        let mut machine = Machine::start(host, "platform", &flags)?;
        let serial = machine.wait_for_serial("freed")?;
        checks::expect(&serial, CHECKS)?;
        // The guest is told the machine's id.
        let shown = host.run("show", &format!("{}orangery --json show platform", preamble(host)?), LIMIT)?.success()?;
        let uuid =
            serial.lines().find_map(|line| line.strip_prefix("uuid ")).unwrap_or_default().trim_end().replace('-', "");
        assert!(uuid.len() == 32 && shown.stdout.contains(&format!("\"id\":\"{uuid}\"")), "{uuid}: {}", shown.stdout);
        let script = format!("{}NAME=platform\n{}", preamble(host)?, include_str!("stock/balloon-host.sh"));
        host.run("balloon", &script, LIMIT)?.success()?;
        machine.verb("stop", "--force")?.success()?;
        Ok(())
    })
}

#[test]
fn debian_on_hyper_v_s_interfaces_uses_them() -> Result<()> {
    const CHECKS: &[&str] = &["detected", "features", "apic-frequency", "apic", "clock", "clock-goes-on", "cpus"];
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let guest = Guest::build(Flavour::Cloud, folder.path(), include_str!("stock/hyperv.sh"), &[])?;
        let script = format!(
            "{}orangery boot --headless --memory 512 --cpus 2 --net none --hyperv --kernel '{}' --initrd '{}' \
             --cmdline 'console=ttyS0 quiet panic=-1'",
            preamble(host)?,
            guest.kernel.display(),
            guest.initrd.display()
        );
        let output = host.run("hyperv", &script, LIMIT)?.success()?;
        output.checks(CHECKS)
    })
}

#[test]
fn debian_goes_on_where_it_was_saved_and_so_does_its_fork() -> Result<()> {
    const CHECKS: &[&str] = &["clock", "suspend", "fork", "restore", "delete", "fio", "disks"];
    const PROGRAMS: [&str; 2] = ["/usr/sbin/mke2fs", "/usr/bin/tcc"];
    // Debian's is linked with the clients of network file systems too, 84 MB.
    const FIO: (&str, &[&str]) = ("/usr/bin/fio", &["libc.so.6", "libm.so.6", "libz.so.1", "libaio.so.1"]);
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let script = include_str!("stock/saves.sh");
        let guest = Guest::with_programs(Flavour::Cloud, folder.path(), script, &[], |fs| {
            fs.program_with_only(Path::new(FIO.0), FIO.1)?;
            PROGRAMS.into_iter().try_for_each(|program| fs.program(Path::new(program)))
        })?;
        let script = format!(
            "{}export KERNEL='{}' INITRD='{}'\n{}",
            preamble(host)?,
            guest.kernel.display(),
            guest.initrd.display(),
            include_str!("stock/saves-host.sh")
        );
        let output = host.run("saves", &script, 3 * LIMIT)?.success()?;
        output.checks(CHECKS)
    })
}

#[test]
fn debian_reboots_in_every_way_it_knows() -> Result<()> {
    Host::with_shared(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let guest = Guest::build(Flavour::Cloud, folder.path(), include_str!("stock/reboot.sh"), &[])?;
        let script = format!(
            "{}disk=$SCRATCH/reboot-$$.img\nprintf 0 > \"$disk\"\ntruncate --size 1M \"$disk\"\n\
             orangery boot --headless --memory 256 --cpus 2 --disk \"$disk\" --kernel '{}' --initrd '{}' \
             --cmdline 'console=ttyS0 quiet panic=-1'",
            preamble(host)?,
            guest.kernel.display(),
            guest.initrd.display()
        );
        // Five boots, some fifteen seconds each on an emulated host, where one that stands still is tried again.
        let output = host.run("reboot", &script, LIMIT)?.success()?;
        for (count, way) in ["acpi", "kbd", "triple", "pci"].into_iter().enumerate() {
            let line = format!("reboot by {way}: {way}");
            let seen = output.stdout.contains(&line) && output.stdout.contains(&format!("boot {}", count + 1));
            assert!(seen, "{way}, see {}", output.folder.display());
        }
        assert!(output.stdout.contains("every way works"), "see {}", output.folder.display());
        Ok(())
    })
}
