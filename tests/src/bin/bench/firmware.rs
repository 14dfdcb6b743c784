//! How long firmware takes to GRUB, and UEFI to a Debian's login, beside QEMU's q35 with the same firmware files, disk,
//! memory and CPUs. Firmware needs hardware KVM: elsewhere every sample is taken in the nested host, by this program there.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orangery_tests::kvm::Kvm;
use orangery_tests::matrix::Medium;
use orangery_tests::nested::Host;
use orangery_tests::process::Process;

use crate::Bench;
use crate::figures::{Figure, Report, Series};

/// The word that makes this program take one sample: see [`sample`].
pub const SAMPLE: &str = "firmware-sample";

const ROUNDS: usize = 3;
/// Rounds that go on to the login, where a start of Debian takes minutes.
const SLOW_ROUNDS: usize = 1;
/// How long a sample may take on an emulated host.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a guest may say nothing.
const PATIENCE: Duration = Duration::from_secs(240);
const MEMORY_MIB: &str = "1024";
const CPUS: &str = "2";
/// The firmware files of both monitors.
const FOLDER: &str = "/usr/share/OVMF";

/// What a guest says on its serial port, and when that counts. GRUB there draws its menu on it.
const GRUB: &str = "GNU GRUB";
const LOGIN: &str = "matrix login:";

/// What is measured: the firmware, what ends it, and its name in the table.
const WAYS: &[(&str, &str, &str)] = &[
    ("bios", GRUB, "start to GRUB's menu by BIOS"),
    ("uefi", GRUB, "start to GRUB's menu by UEFI"),
    ("uefi", LOGIN, "start to Debian's login by UEFI"),
];
const MONITORS: [&str; 2] = ["Orangery", "QEMU q35"];

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let medium = Medium::DebianDisk.make()?;
    let disk = medium.files.first().context("Debian's disk has no file")?;
    let mut series: Vec<[Series; 2]> = WAYS.iter().map(|_| MONITORS.map(Series::new)).collect();
    let login_rounds = if Kvm::detect() == Kvm::Hardware { ROUNDS } else { SLOW_ROUNDS };
    for round in 0..ROUNDS {
        for (which, monitor) in MONITORS.iter().enumerate() {
            for firmware in ["bios", "uefi"] {
                let wanted: Vec<_> = WAYS
                    .iter()
                    .enumerate()
                    .filter(|(_, way)| way.0 == firmware && (way.1 != LOGIN || round < login_rounds))
                    .collect();
                let marks: Vec<&str> = wanted.iter().map(|(_, way)| way.1).collect();
                let seconds = on_host(bench, monitor, firmware, disk, &marks)?;
                eprintln!("    {monitor}, {firmware}: {seconds:.1?} s");
                for ((index, _), value) in wanted.iter().zip(seconds) {
                    series[*index][which].samples.push(value);
                }
            }
        }
    }
    for ((_, _, name), [ours, other]) in WAYS.iter().zip(series) {
        report.add(Figure { name: (*name).into(), unit: "s", more_is_better: false, ours, others: vec![other] });
    }
    if Kvm::detect() != Kvm::Hardware {
        report.note("Firmware was measured in the nested host, an emulator: only its ratios mean something.");
    }
    Ok(())
}

/// Takes a sample where there is hardware KVM: seconds to each of the marks.
fn on_host(bench: &Bench, monitor: &str, firmware: &str, disk: &Path, marks: &[&str]) -> Result<Vec<f64>> {
    let me = std::env::current_exe().context("could not find the benchmark's own path")?;
    let marks_: String = marks.iter().map(|mark| format!(" '{mark}'")).collect();
    let mut seconds = Vec::new();
    Host::with_shared(|host| {
        host.prepare_for_uefi()?;
        // A guest writes to its disk, and the next one shall find it as it was.
        let script = format!(
            "set -e\nmkdir -p '{scratch}'\ncd '{scratch}'\n\
             [[ -e base.img ]] || cp --sparse=always '{disk}' base.img\ncp --sparse=always base.img bench.img\n\
             [[ {firmware} = bios ]] || cp {FOLDER}/OVMF_VARS_4M.fd bench.vars\n\
             '{me}' {SAMPLE} '{orangery}' '{monitor}' {firmware}{marks_}\nrm bench.img",
            scratch = host.scratch().display(),
            disk = disk.display(),
            me = me.display(),
            orangery = bench.orangery.display(),
        );
        let output = host.run("sample", &script, LIMIT)?.success()?;
        let lines = output.stdout.lines().map(|line| line.parse().context("a sample is no number"));
        seconds = lines.collect::<Result<Vec<f64>>>()?;
        ensure!(seconds.len() == marks.len(), "a sample is missing, see {}", output.folder.display());
        Ok(())
    })?;
    Ok(seconds)
}

/// Starts a monitor in the folder of `bench.img` and prints, for each mark, after how many seconds the guest's serial port
/// had said it: `PROGRAM MONITOR FIRMWARE MARK…`.
pub fn sample(arguments: &[String]) -> Result<()> {
    let [orangery, monitor, firmware, marks @ ..] = arguments else { bail!("a sample lacks its arguments") };
    let mut command = command(Path::new(orangery), monitor, firmware == "uefi");
    let (mut reader, writer) = std::io::pipe().context("could not make a pipe")?;
    let log = fs::File::create("bench.log").context("could not make a log")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(log);
    let begun = Instant::now();
    let _process = Process::start(command)?;
    let (sender, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut chunk) {
            if sender.send((begun.elapsed(), chunk[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    let mut said = Vec::new();
    for mark in marks {
        let mut after = Duration::ZERO;
        while !contains(&said, mark.as_bytes()) {
            match chunks.recv_timeout(PATIENCE) {
                Ok((when, chunk)) => {
                    after = when;
                    said.extend(chunk);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let log = fs::read_to_string("bench.log").unwrap_or_default();
                    bail!("{monitor} never said '{mark}':\n{}\n{log}", String::from_utf8_lossy(&said));
                }
            }
        }
        println!("{}", after.as_secs_f64());
    }
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The monitor with a guest of the same kind: what is on the console's way is a graphics card, and a disk on virtio-blk.
fn command(orangery: &Path, monitor: &str, uefi: bool) -> Command {
    if monitor == MONITORS[0] {
        let mut command = Command::new(orangery);
        if uefi {
            command.env("ORANGERY_FIRMWARE", FOLDER);
        }
        command.args(["boot", "--headless", "--memory", MEMORY_MIB, "--cpus", CPUS, "--net", "none"]);
        command.args(["--disk", "bench.img", "--firmware", if uefi { "uefi" } else { "bios" }]);
        return command;
    }
    let code = PathBuf::from(FOLDER).join("OVMF_CODE_4M.fd");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,accel=kvm", "-cpu", "host", "-m", MEMORY_MIB, "-smp", CPUS]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-device", "virtio-vga"]);
    // With a place in the boot order, as ours has: without one, UEFI looks at every device first.
    command.args(["-drive", "file=bench.img,format=raw,if=none,id=disk"]);
    command.args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
    if uefi {
        command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={}", code.display()));
        command.args(["-drive", "if=pflash,format=raw,file=bench.vars"]);
    }
    command
}
