//! The probe guest on this computer's own /dev/kvm: every device of the machine, seen from inside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use orangery_tests::kvm::Kvm;
use orangery_tests::{media, orangery, report};

/// A machine for one run of the probe.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// `None` without a usable /dev/kvm: the test is counted as skipped.
    fn new(test: &str) -> Result<Option<Bench>> {
        if Kvm::detect() == Kvm::None {
            report::skip(2, test, "there is no usable /dev/kvm");
            return Ok(None);
        }
        let bench = Bench { folder: tempfile::tempdir()? };
        fs::write(bench.path("probe.elf"), orangery_assets::PROBE_ELF)?;
        fs::create_dir(bench.path("run"))?;
        Ok(Some(bench))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Boots with these flags until the guest powers off.
    fn boot(&self, flags: &[&str]) -> Result<Output> {
        // A guest that never ends is a failure, not a test that never ends.
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "300"]).arg(orangery()?);
        command.args(["boot", "--headless"]).args(flags).env("XDG_RUNTIME_DIR", self.path("run"));
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").stdin(Stdio::null());
        command.output().context("could not start orangery")
    }

    /// Runs the probe with these words; returns what it printed.
    fn probe(&self, words: &str, flags: &[&str]) -> Result<String> {
        let kernel = self.path("probe.elf");
        let kernel = kernel.to_str().context("a path")?;
        let output = self.boot(&[&["--kernel", kernel, "--cmdline", words][..], flags].concat())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{words}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }
}

/// What each test came to: `ok …`, `FAIL …` or `absent`.
fn results(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter_map(|line| line.trim_end().strip_prefix("test "));
    lines.filter_map(|line| line.split_once(": ")).collect()
}

fn expect_ok(text: &str, names: &[&str]) -> Result<()> {
    let results = results(text);
    for &name in names {
        let result = results.get(name).copied().unwrap_or("not tested");
        ensure!(result.starts_with("ok"), "{name}: {result}\n{text}");
    }
    let failed: Vec<_> = results.iter().filter(|(_, result)| result.starts_with("FAIL")).collect();
    ensure!(failed.is_empty(), "{failed:?}\n{text}");
    Ok(())
}

const EVERY_DEVICE: [&str; 29] = [
    "cpu",
    "memory",
    "lapic",
    "ioapic",
    "pic",
    "pm-timer",
    "rtc",
    "smp",
    "fw_cfg",
    "acpi",
    "debug-port",
    "serial",
    "i8042",
    "pci",
    "vga-text",
    "dispi",
    "rng",
    "blk",
    "blk.1",
    "console",
    "input",
    "input.1",
    "gpu",
    "cdrom",
    "disk",
    "disk.1",
    "nvme",
    "nvme.1",
    "net",
];

fn sparse(path: &Path, len: u64) -> Result<()> {
    Ok(fs::File::create(path)?.set_len(len)?)
}

#[test]
fn the_probe_passes_on_every_device_with_two_cpus() -> Result<()> {
    let Some(bench) = Bench::new("the_probe_passes_on_every_device_with_two_cpus")? else { return Ok(()) };
    sparse(&bench.path("a.img"), 64 << 20)?;
    fs::write(bench.path("b.img"), vec![0x5a; 8 << 20])?;
    let iso = media::grub_rescue_iso()?;
    let (a, b) = (bench.path("a.img"), format!("{},ro", bench.path("b.img").display()));
    sparse(&bench.path("c.img"), 64 << 20)?;
    fs::write(bench.path("d.img"), vec![0xa5; 8 << 20])?;
    let (c, d) = (bench.path("c.img"), format!("{},ro,bus=nvme", bench.path("d.img").display()));
    let path = |p: &Path| p.to_str().map(str::to_owned).context("a path");
    let (a, c, iso) = (path(&a)?, format!("{},bus=nvme", path(&c)?), path(&iso)?);
    sparse(&bench.path("e.img"), 64 << 20)?;
    fs::write(bench.path("f.img"), vec![0x3c; 8 << 20])?;
    let e = format!("{},bus=sata", bench.path("e.img").display());
    let f = format!("{},ro,bus=sata", bench.path("f.img").display());
    let mut flags = vec!["--cpus", "2", "--memory", "256", "--cdrom", &iso];
    for disk in [&a, &b, &c, &d, &e, &f] {
        flags.extend(["--disk", disk]);
    }
    let tap = Tap::new();
    let mut expected = EVERY_DEVICE.to_vec();
    let net = tap.as_ref().map(|tap| format!("tap={}", tap.name));
    match &net {
        Some(net) => flags.extend(["--net", net]),
        None => {
            report::skip(2, "the probe's test of virtio-net", "no tap interface can be made here");
            expected.retain(|&name| name != "net");
        }
    }
    let text = bench.probe("test=all", &flags)?;
    expect_ok(&text, &expected)?;
    for (image, fill) in [("b.img", 0x5a), ("d.img", 0xa5), ("f.img", 0x3c)] {
        let kept = fs::read(bench.path(image))?.iter().all(|&byte| byte == fill);
        ensure!(kept, "the read-only disk {image} was written");
    }
    Ok(())
}

#[test]
fn memory_above_four_gib_works() -> Result<()> {
    let Some(bench) = Bench::new("memory_above_four_gib_works")? else { return Ok(()) };
    let text = bench.probe("test=memory,acpi,smp", &["--cpus", "4", "--memory", "3072"])?;
    expect_ok(&text, &["memory", "acpi", "smp"])
}

#[test]
fn what_the_guest_writes_is_in_the_file_byte_by_byte_and_reads_back_after_a_restart() -> Result<()> {
    let name = "what_the_guest_writes_is_in_the_file_byte_by_byte_and_reads_back_after_a_restart";
    a_pattern_is_in_the_file(name, "virtio", "blk")
}

#[test]
fn what_the_guest_writes_by_nvme_is_in_the_file_byte_by_byte_and_reads_back_after_a_restart() -> Result<()> {
    let name = "what_the_guest_writes_by_nvme_is_in_the_file_byte_by_byte_and_reads_back_after_a_restart";
    a_pattern_is_in_the_file(name, "nvme", "nvme")
}

#[test]
fn what_the_guest_writes_by_sata_is_in_the_file_byte_by_byte_and_reads_back_after_a_restart() -> Result<()> {
    let name = "what_the_guest_writes_by_sata_is_in_the_file_byte_by_byte_and_reads_back_after_a_restart";
    a_pattern_is_in_the_file(name, "sata", "disk")
}

#[test]
fn the_bios_starts_a_virtio_disk() -> Result<()> {
    the_bios_starts_a_disk("the_bios_starts_a_virtio_disk", "virtio")
}

#[test]
fn the_bios_starts_a_sata_disk() -> Result<()> {
    the_bios_starts_a_disk("the_bios_starts_a_sata_disk", "sata")
}

#[test]
fn the_bios_starts_an_nvme_disk() -> Result<()> {
    the_bios_starts_a_disk("the_bios_starts_an_nvme_disk", "nvme")
}

/// Has SeaBIOS start the probe's own disk image from a controller.
fn the_bios_starts_a_disk(name: &str, bus: &str) -> Result<()> {
    let Some(bench) = Bench::new(name)? else { return Ok(()) };
    let image = bench.path("probe.img");
    // The second sector is the command line.
    let mut disk = orangery_assets::PROBE_DISK.to_vec();
    let words = disk.get_mut(512..1024).context("the image has a second sector")?;
    words.fill(0);
    for (place, byte) in words.iter_mut().zip(b"test=cpu,memory,pci") {
        *place = *byte;
    }
    fs::write(&image, disk)?;
    let disk = format!("{},ro,bus={bus}", image.display());
    let output = bench.boot(&["--cpus", "1", "--memory", "64", "--disk", &disk])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    expect_ok(&text, &["cpu", "memory", "pci"])
}

/// Has the probe's test of a controller write a pattern, compares the image, and has it compare what it reads.
fn a_pattern_is_in_the_file(name: &str, bus: &str, kind: &str) -> Result<()> {
    const SEED: u64 = 77;
    let Some(bench) = Bench::new(name)? else { return Ok(()) };
    let image = bench.path("disk.img");
    sparse(&image, 16 << 20)?;
    let disk = format!("{},bus={bus}", image.display());
    let flags = ["--cpus", "1", "--memory", "64", "--disk", &disk];
    let test = format!("{kind}-pattern");
    expect_ok(&bench.probe(&format!("test={test} {kind}fill={SEED}"), &flags)?, &[&test])?;
    let mut state = SEED;
    for (at, chunk) in fs::read(&image)?.chunks_exact(8).enumerate() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ensure!(chunk == state.to_le_bytes(), "the file differs at byte {}", 8 * at);
    }
    expect_ok(&bench.probe(&format!("test={test} {kind}verify={SEED}"), &flags)?, &[&test])
}

#[test]
fn the_tpm_answers_and_has_power_anew_in_every_machine() -> Result<()> {
    let Some(bench) = Bench::new("the_tpm_answers_and_has_power_anew_in_every_machine")? else { return Ok(()) };
    let flags = ["--tpm", "--cpus", "1", "--memory", "64"];
    let text = bench.probe("test=acpi,tpm", &flags)?;
    expect_ok(&text, &["acpi", "tpm"])?;
    let result = results(&text)["tpm"];
    ensure!(result == "ok made by IBM, started by the probe, PCR 0 00000000…", "{text}");
    // What it needed of the host is gone with it.
    let left: Vec<_> = fs::read_dir(bench.path("run").join("orangery"))?.collect();
    ensure!(left.is_empty(), "{left:?}");
    let text = bench.probe("test=tpm", &["--cpus", "1", "--memory", "64"])?;
    ensure!(results(&text)["tpm"] == "absent", "{text}");
    Ok(())
}

#[test]
fn the_bios_measures_what_it_starts_into_the_tpm() -> Result<()> {
    let Some(bench) = Bench::new("the_bios_measures_what_it_starts_into_the_tpm")? else { return Ok(()) };
    let disk = bench.path("probe.img");
    let mut image = orangery_assets::PROBE_DISK.to_vec();
    // The words are the second sector.
    let words = b"test=tpm\0";
    image[512..512 + words.len()].copy_from_slice(words);
    fs::write(&disk, image)?;
    let output = bench.boot(&["--tpm", "--cpus", "1", "--memory", "64", "--disk", disk.to_str().context("a path")?])?;
    let text = String::from_utf8_lossy(&output.stdout);
    expect_ok(&text, &["tpm"])?;
    let result = results(&text)["tpm"];
    ensure!(result.contains("started by firmware"), "{result}");
    ensure!(!result.contains("PCR 0 00000000"), "nothing was measured: {result}");
    Ok(())
}

/// A tap interface that goes away with the test.
struct Tap {
    name: String,
}

impl Tap {
    fn new() -> Option<Tap> {
        let name = format!("orgt{}", std::process::id() % 1_000_000);
        let ip =
            |args: &[&str]| Command::new("ip").args(args).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        (ip(&["tuntap", "add", "dev", &name, "mode", "tap"]) && ip(&["link", "set", &name, "up"]))
            .then_some(Tap { name })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["tuntap", "del", "dev", &self.name, "mode", "tap"]).status();
    }
}
