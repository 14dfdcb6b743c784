//! The probe guest on each of the monitors, with one CPU and the same memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use orangery_tests::process::Process;

use crate::Bench;

/// Each guest's memory.
pub const MEMORY_MIB: u32 = 256;
/// How long a guest may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// Orangery without a window.
    Orangery,
    /// Orangery with its console window, which needs a `DISPLAY` in [`Setup::environment`].
    Window,
    /// QEMU's ordinary machine.
    Q35,
    /// The same with the small firmware qboot, which finds the kernel sooner and does not look for disks.
    Q35Qboot,
    /// QEMU's machine without PCI and without what old systems need.
    Microvm,
}

impl Monitor {
    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Monitor::Orangery => "Orangery",
            Monitor::Window => "Orangery with window",
            Monitor::Q35 => "QEMU q35",
            Monitor::Q35Qboot => "QEMU q35 with qboot",
            Monitor::Microvm => "QEMU microvm",
        }
    }

    fn machine(self) -> Option<&'static str> {
        match self {
            Monitor::Orangery | Monitor::Window => None,
            Monitor::Q35 | Monitor::Q35Qboot => Some("q35"),
            Monitor::Microvm => Some("microvm"),
        }
    }

    /// The command that starts the probe with these words; other arguments follow.
    pub fn command(self, bench: &Bench, words: &str) -> Command {
        let memory = MEMORY_MIB.to_string();
        let mut command;
        match self.machine() {
            None => {
                command = Command::new(&bench.orangery);
                command.args(["boot", "--cpus", "1", "--memory", &memory, "--cmdline", words]);
                command.arg("--kernel").arg(&bench.probe);
                if self == Monitor::Orangery {
                    command.arg("--headless");
                }
            }
            Some(machine) => {
                command = Command::new("qemu-system-x86_64");
                // Memory by memfd as ours is, so that it can be told from the monitor's own.
                command.args(["-machine", &format!("{machine},accel=kvm,memory-backend=ram")]);
                command.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M")]);
                command.args(["-m", &memory, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
                command.args(["-append", words]).arg("-kernel").arg(&bench.probe);
                if self == Monitor::Q35Qboot {
                    command.args(["-bios", "qboot.rom"]);
                }
            }
        }
        command
    }
}

/// A running guest. It ends when this is dropped.
pub struct Guest {
    /// When its monitor was about to be started.
    pub begun: Instant,
    /// Its monitor.
    pub process: Process,
    name: &'static str,
    lines: Receiver<(Instant, String)>,
}

impl Guest {
    /// Starts the monitor's command; what it complains about goes to `artifacts/bench.log`.
    pub fn start(monitor: Monitor, mut command: Command) -> Result<Self> {
        let log = orangery_tests::artifacts()?.join("bench.log");
        let log = File::options().create(true).append(true).open(log).context("could not open artifacts/bench.log")?;
        let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
        command.stdin(Stdio::null()).stdout(writer).stderr(log);
        let begun = Instant::now();
        let process = Process::start(command)?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            // Firmware may say what is no text.
            while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send((Instant::now(), text)).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self { begun, process, name: monitor.name(), lines })
    }

    /// Waits for a line that contains the text: when it came, and what followed the text in it.
    pub fn wait_for(&self, text: &str) -> Result<(Instant, String)> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let (when, line) =
                line.map_err(|_| anyhow!("{} never said '{text}': see artifacts/bench.log", self.name))?;
            if let Some((_, rest)) = line.split_once(text) {
                return Ok((when, rest.to_owned()));
            }
        }
    }

    /// Waits for the end of the probe's benchmarks: their values by their names.
    pub fn benches(&self) -> Result<HashMap<String, f64>> {
        let mut values = HashMap::new();
        loop {
            let (_, line) = self.wait_for("")?;
            if let Some(result) = line.strip_prefix("bench ") {
                let (name, rest) = result.split_once(": ").context("a benchmark has no value")?;
                let value = rest.split(' ').next().and_then(|value| value.parse().ok());
                values.insert(name.to_owned(), value.with_context(|| format!("{}: {line}", self.name))?);
            } else if line.starts_with("probe: done") {
                return Ok(values);
            }
        }
    }

    /// Its monitor's memory beyond the guest's.
    pub fn overhead(&self) -> Result<Overhead> {
        let path = format!("/proc/{}/smaps", self.process.id);
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
        Overhead::read(&text).context("the guest's memory is not among its monitor's mappings")
    }

    /// The CPU time of its monitor so far, all threads and the guest included.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        let tasks = Path::new("/proc").join(self.process.id.to_string()).join("task");
        let tasks = fs::read_dir(&tasks).with_context(|| format!("could not read {}", tasks.display()))?;
        for task in tasks {
            let task = task.context("could not read the threads of a monitor")?;
            // A thread may end in between. Its first field is nanoseconds on a CPU.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let nanos = text.split(' ').next().and_then(|field| field.parse().ok());
            total += Duration::from_nanos(nanos.context("the kernel counts no CPU time of threads")?);
        }
        ensure!(total > Duration::ZERO, "the kernel counts no CPU time of threads");
        Ok(total)
    }
}

/// A monitor's memory, the mappings of the guest's left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Overhead {
    /// Resident, with what other processes of the same program and libraries share: KiB.
    pub resident: u64,
    /// What it has written itself, which nothing else shares: KiB.
    pub written: u64,
}

impl Overhead {
    /// Sums up an smaps file (proc_pid_smaps(5)); none if the guest's memory is not in it.
    fn read(smaps: &str) -> Option<Self> {
        const GUEST: [&str; 2] = ["/memfd:guest-ram", "/memfd:memory-backend-memfd"];
        let mut sum = Self { resident: 0, written: 0 };
        let (mut inside, mut found) = (false, false);
        for line in smaps.lines() {
            let (name, value) = line.split_once(' ')?;
            let into = match name {
                "Rss:" => &mut sum.resident,
                "Private_Dirty:" => &mut sum.written,
                _ => {
                    // Only a mapping's own line begins with something else than a name.
                    if !name.ends_with(':') {
                        inside = GUEST.iter().any(|guest| value.contains(guest));
                        found |= inside;
                    }
                    continue;
                }
            };
            if !inside {
                *into += value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
            }
        }
        found.then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-7f01 rw-s 00000000 00:01 2 /memfd:guest-ram (deleted)
Rss:                4096 kB
Private_Dirty:      4096 kB
ffff-ffff rw-p 00000000 00:00 0 [heap]
Rss:                3000 kB
Private_Dirty:      2048 kB
VmFlags: rd wr
";

    #[test]
    fn the_guests_own_memory_does_not_count() {
        assert_eq!(Overhead::read(SMAPS), Some(Overhead { resident: 3000, written: 2048 }));
    }

    #[test]
    fn memory_that_is_called_otherwise_is_not_taken_for_the_monitors() {
        assert_eq!(Overhead::read(&SMAPS.replace("guest-ram", "memory")), None);
    }
}
