//! The probe guest on this computer's own /dev/kvm: every device of the machine, seen from inside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orangery_tests::kvm::Kvm;
use orangery_tests::process::Process;
use orangery_tests::{media, orangery, report};
use vmm_core::backend::chardev::CharPort;
use vmm_core::backend::display::Screen;
use vmm_core::backend::input::InputPort;
use vmm_core::config::{Boot, VmConfig};
use vmm_core::vm::{Lifecycle, Ports, Vm, VmCommand};

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
        let limited = self.command()?;
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "300"]).arg(limited.get_program()).args(limited.get_args()).args(flags);
        self.surround(&mut command);
        command.output().context("could not start orangery")
    }

    /// `orangery boot`, to be given flags.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(orangery()?);
        command.args(["boot", "--headless"]);
        self.surround(&mut command);
        Ok(command)
    }

    fn surround(&self, command: &mut Command) {
        command.env("XDG_RUNTIME_DIR", self.path("run")).env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        command.stdin(Stdio::null());
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

const EVERY_DEVICE: [&str; 31] = [
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
    "generation",
    "debug-port",
    "serial",
    "i8042",
    "pci",
    "vga-text",
    "dispi",
    "rng",
    "balloon",
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
fn sixty_four_cpus_start_and_work_together() -> Result<()> {
    let Some(bench) = Bench::new("sixty_four_cpus_start_and_work_together")? else { return Ok(()) };
    let text = bench.probe("test=cpu,acpi,smp", &["--cpus", "64", "--memory", "128"])?;
    expect_ok(&text, &["cpu", "acpi", "smp"])?;
    ensure!(text.contains("64 CPUs counted"), "{text}");
    Ok(())
}

/// APIC ids have gaps where cores and threads are not powers of two.
#[test]
fn cpus_in_sockets_cores_and_threads_have_the_apic_ids_of_their_places() -> Result<()> {
    let Some(bench) = Bench::new("cpus_in_sockets_cores_and_threads_have_the_apic_ids_of_their_places")? else {
        return Ok(());
    };
    let text = bench.probe("test=cpu,acpi,smp", &["--topology", "2x3x2", "--memory", "128"])?;
    expect_ok(&text, &["cpu", "acpi", "smp"])?;
    ensure!(text.contains("12 CPUs counted"), "{text}");
    Ok(())
}

/// Memory that is not touched costs nothing, so a machine may have more than the host.
#[test]
fn a_machine_with_seventy_two_gib_has_memory_up_to_its_end() -> Result<()> {
    let Some(bench) = Bench::new("a_machine_with_seventy_two_gib_has_memory_up_to_its_end")? else { return Ok(()) };
    let text = bench.probe("test=memory,fw_cfg", &["--cpus", "1", "--memory", "73728"])?;
    expect_ok(&text, &["memory", "fw_cfg"])?;
    // 2 GiB below 4, and 70 from there.
    ensure!(text.contains("73728 MiB") && text.contains(&format!("below {:#x}", 74u64 << 30)), "{text}");
    Ok(())
}

#[test]
fn memory_above_four_gib_works() -> Result<()> {
    let Some(bench) = Bench::new("memory_above_four_gib_works")? else { return Ok(()) };
    let text = bench.probe("test=memory,acpi,smp", &["--cpus", "4", "--memory", "3072"])?;
    expect_ok(&text, &["memory", "acpi", "smp"])
}

/// Runs the probe until it has printed `text` so many times or has ended; its output then, and the process.
fn run_until(bench: &Bench, flags: &[&str], words: &str, text: &str, times: usize) -> Result<(String, Process)> {
    let (kernel, output) = (bench.path("probe.elf"), bench.path("output"));
    let mut command = bench.command()?;
    command.args(flags).args(["--cmdline", words, "--kernel"]).arg(kernel).stdout(fs::File::create(&output)?);
    let process = Process::start(command)?;
    // A guest that never ends is a failure, not a test that never ends.
    let started = Instant::now();
    loop {
        let (running, printed) = (process.is_running(), fs::read_to_string(&output)?);
        if printed.matches(text).count() >= times {
            return Ok((printed, process));
        }
        ensure!(running && started.elapsed() < Duration::from_secs(300), "{words}: {printed}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_machine_resets_in_every_way_that_guests_use() -> Result<()> {
    let Some(bench) = Bench::new("the_machine_resets_in_every_way_that_guests_use")? else { return Ok(()) };
    for way in ["acpi", "cf9", "port92", "i8042", "triple"] {
        // The devices must be as they were at power-on: the test passes each time, on two CPUs.
        let words = format!("test=smp,serial,i8042,fw_cfg,rtc then=reboot by={way}");
        let (text, _process) = run_until(&bench, &["--memory", "64", "--cpus", "2"], &words, "probe: done ok=5", 3)?;
        ensure!(text.matches("probe: hello").count() >= 3, "{way}: {text}");
    }
    Ok(())
}

#[test]
fn another_generation_id_reaches_a_running_guest() -> Result<()> {
    const ID: [u8; 16] = *b"the new identity";
    let Some(bench) = Bench::new("another_generation_id_reaches_a_running_guest")? else { return Ok(()) };
    let config = VmConfig {
        boot: Boot::Kernel {
            kernel: bench.path("probe.elf"),
            initrd: None,
            cmdline: "test=generation generationwait".into(),
        },
        ..VmConfig::new(1, 64)
    };
    let [(serial, terminal), (console, _), (debug, _)] = [CharPort::pair()?, CharPort::pair()?, CharPort::pair()?];
    let ports = Ports {
        display: Screen::new(|| ()).sink(),
        keyboard: InputPort::new()?,
        pointer: InputPort::new()?,
        serial,
        console,
        debug,
        tpm: None,
    };
    let machine = Vm::start(&config, ports, |_| ())?;
    let started = Instant::now();
    let (mut text, mut told) = (String::new(), false);
    while machine.state() != Lifecycle::Stopped || terminal.has_input() {
        ensure!(started.elapsed() < Duration::from_secs(300), "{text}");
        let mut bytes = [0; 256];
        let count = terminal.read(&mut bytes);
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        if !told && text.contains("probe: generation ready") {
            machine.send(VmCommand::NewGeneration { id: ID })?;
            told = true;
        }
        if count == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    machine.wait();
    let id: String = ID.iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(text.contains("test generation: ok") && text.contains(&format!("became {id}")), "{text}");
    Ok(())
}

/// Bytes that the host has allocated for a running machine's memory.
fn guest_memory(pid: u32) -> Result<u64> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:guest-ram")) {
            return Ok(fs::metadata(&path)?.blocks() * 512);
        }
    }
    bail!("process {pid} has no guest memory")
}

#[test]
fn memory_that_the_guest_reports_free_goes_back_to_the_host() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let name = "memory_that_the_guest_reports_free_goes_back_to_the_host";
    let Some(bench) = Bench::new(name)? else { return Ok(()) };
    let words = "test=balloon balloonmib=256 then=idle";
    let (text, process) = run_until(&bench, &["--memory", "512", "--cpus", "1"], words, "probe: done", 1)?;
    let (kept, peak) = (guest_memory(process.id), fs::read_to_string(format!("/proc/{}/status", process.id)));
    drop(process);
    ensure!(text.contains("test balloon: ok"), "{text}");
    let peak = peak?.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let (kept, peak) = (kept?, peak.unwrap_or(0u64) * 1024);
    ensure!(peak > 256 * MIB, "the guest's 256 MiB were never there: at most {peak} bytes were");
    ensure!(kept < 64 * MIB, "{kept} bytes are still allocated");
    Ok(())
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

/// The same on a thin disk that stands on another, on each controller, with our own verbs around it.
#[test]
fn what_the_guest_writes_is_in_a_qcow2_overlay_and_not_in_what_it_stands_on() -> Result<()> {
    const SEED: u64 = 91;
    let name = "what_the_guest_writes_is_in_a_qcow2_overlay_and_not_in_what_it_stands_on";
    let Some(bench) = Bench::new(name)? else { return Ok(()) };
    let verb = |words: &[&str]| -> Result<()> {
        let output = Command::new(orangery()?).arg("disk").args(words).output()?;
        ensure!(output.status.success(), "disk {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let path = |name: &str| bench.path(name).display().to_string();
    verb(&["create", &path("base.qcow2"), "16M"])?;
    let before = fs::read(bench.path("base.qcow2"))?;
    for (bus, kind) in [("virtio", "blk"), ("sata", "disk"), ("nvme", "nvme")] {
        let (top, copy) = (path(&format!("{bus}.qcow2")), path(&format!("{bus}.raw")));
        verb(&["create", &top, "--backing", "base.qcow2"])?;
        let disk = format!("{top},bus={bus}");
        let flags = ["--cpus", "1", "--memory", "64", "--disk", &disk];
        let test = format!("{kind}-pattern");
        expect_ok(&bench.probe(&format!("test={test} {kind}fill={SEED}"), &flags)?, &[&test])?;
        verb(&["check", &top])?;
        verb(&["convert", &top, &copy])?;
        let mut state = SEED;
        for (at, chunk) in fs::read(&copy)?.chunks_exact(8).enumerate() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ensure!(chunk == state.to_le_bytes(), "{bus}: the disk differs at byte {}", 8 * at);
        }
        expect_ok(&bench.probe(&format!("test={test} {kind}verify={SEED}"), &flags)?, &[&test])?;
    }
    ensure!(fs::read(bench.path("base.qcow2"))? == before, "the image below was changed");
    Ok(())
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
