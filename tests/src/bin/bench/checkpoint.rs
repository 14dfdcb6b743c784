//! What saving a machine costs: until a suspended one runs again, how long a guest is stopped by a snapshot and by a fork, and
//! what a fork takes. All times are the guest's own, as its lines tell them to somebody outside (`then=tick`, docs/probe.md).

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orangery_tests::process::Process;

use crate::Bench;
use crate::figures::{Figure, Report, Series};

/// Memory of the guests that are restored, MiB, and how much of it is in use.
const RESTORED: [(u32, u32); 2] = [(1024, 700), (8192, 1500)];
/// Restores of each.
const RESTORES: usize = 5;
/// The guest that is saved while it runs: memory, in use, and what it changes in a second, MiB.
const LIVE: (u32, u32, u32) = (1024, 512, 100);
/// Snapshots, and forks.
const MOMENTS: usize = 5;
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_micros(100);

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let ours = Ours::new(bench)?;
    let mut of_sizes = Vec::new();
    for (memory, used) in RESTORED {
        let figure = restore(&ours, memory, used)?;
        of_sizes.push(figure.ours.median().unwrap_or(f64::NAN));
        report.add(figure);
    }
    if let [small, large] = of_sizes[..] {
        let name = format!("the same, {} MiB beside {} MiB of our own", RESTORED[1].0, RESTORED[0].0);
        let series = |name: &str, value| Series { name: name.into(), samples: vec![value] };
        let (ours, others) = (series("Orangery", large), vec![series("the smaller", small)]);
        report.add(Figure { name, unit: "ms", more_is_better: false, ours, others });
    }
    snapshots_and_forks(&ours, report)
}

/// A library of our own.
pub struct Ours<'a> {
    bench: &'a Bench,
    folder: PathBuf,
    /// What the program finds in its environment besides.
    environment: Vec<(&'static str, OsString)>,
}

impl<'a> Ours<'a> {
    /// In a folder of the benchmarks.
    pub fn new(bench: &'a Bench) -> Result<Self> {
        let folder = bench.scratch.path().join("checkpoints");
        fs::create_dir_all(folder.join("run")).context("could not make a folder")?;
        Ok(Self { bench, folder, environment: Vec::new() })
    }

    /// The program finds this in its environment.
    pub fn with_env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bench.orangery);
        command.args(args).env("ORANGERY_LIBRARY", self.folder.join("machines"));
        command.env("XDG_RUNTIME_DIR", self.folder.join("run")).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null());
        command
    }

    /// Runs the program, which must do what it is told; what it prints.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().context("could not run the program")?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A machine with the probe guest and, perhaps, an empty disk of a size.
    pub fn create(&self, name: &str, memory: u32, words: &str, disk: Option<&str>) -> Result<()> {
        let kernel = self.bench.probe.to_string_lossy();
        let memory = memory.to_string();
        let mut args = vec!["create", name, "--memory", &memory, "--cpus", "1", "--net", "none"];
        args.extend(["--kernel", &kernel, "--cmdline", words]);
        args.extend(disk.iter().flat_map(|size| ["--new-disk", size]));
        self.ok(&args).map(drop)
    }

    /// A machine's folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join("machines").join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder(name).join("logs/serial.log")
    }

    /// Waits until a guest prints these words from now on.
    pub fn wait_for(&self, name: &str, words: &str) -> Result<()> {
        let log = self.log(name);
        let length = || fs::read_to_string(&log).map_or(0, |text| text.len());
        let (old, until) = (length(), Instant::now() + PATIENCE);
        while !fs::read_to_string(&log).is_ok_and(|text| text.get(old..).is_some_and(|new| new.contains(words))) {
            ensure!(Instant::now() < until, "{name:?} does not say {words:?}");
            thread::sleep(POLL);
        }
        Ok(())
    }
}

fn words(used: u32, dirty: u32) -> String {
    format!("then=tick tickmib={used} dirtymib={dirty}")
}

/// Waits until a file, which is written anew, has a tick in it.
fn wait_for_tick(path: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !fs::read_to_string(path).is_ok_and(|text| text.contains("tick ")) {
        ensure!(Instant::now() < until, "no tick in {}", path.display());
        thread::sleep(POLL);
    }
    Ok(())
}

/// From the start of the program to the first tick of a guest that goes on.
fn restore(ours: &Ours<'_>, memory: u32, used: u32) -> Result<Figure> {
    let name = format!("m{memory}");
    let log = ours.log(&name);
    ours.create(&name, memory, &words(used, 0), None)?;
    ours.ok(&["start", &name, "--headless"])?;
    wait_for_tick(&log)?;
    ours.ok(&["suspend", &name])?;
    let qemu = Saved::make(ours, memory, used)?;
    let (mut own, mut peer) = (Series::new("Orangery"), Series::new("QEMU microvm, -incoming"));
    for _ in 0..RESTORES {
        fs::remove_file(&log).context("could not remove the log")?;
        let mut command = ours.command(&["run", &name, "--headless", "--without-saving"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let process = Process::start(command)?;
        wait_for_tick(&log)?;
        own.samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        drop(process);
        peer.samples.push(qemu.restore()?.as_secs_f64() * 1000.0);
    }
    let name = format!("exec to a guest that ticks again, {memory} MiB, {used} in use");
    Ok(Figure { name, unit: "ms", more_is_better: false, ours: own, others: vec![peer] })
}

/// QEMU's smallest machine with the same guest; its monitor is its standard input.
fn qemu(ours: &Ours<'_>, memory: u32, words: &str, serial: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "microvm,accel=kvm", "-m", &memory.to_string(), "-nodefaults", "-display", "none"]);
    command.arg("-serial").arg(format!("file:{}", serial.display())).args(["-monitor", "stdio", "-append", words]);
    command.arg("-kernel").arg(&ours.bench.probe).stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

/// A guest of QEMU's that was saved to a file.
struct Saved<'a> {
    ours: &'a Ours<'a>,
    memory: u32,
    words: String,
    file: PathBuf,
    serial: PathBuf,
}

impl<'a> Saved<'a> {
    fn make(ours: &'a Ours<'_>, memory: u32, used: u32) -> Result<Self> {
        let file = ours.folder.join("qemu.state");
        let saved = Self { ours, memory, words: words(used, 0), file, serial: ours.folder.join("qemu.serial") };
        let _ = fs::remove_file(&saved.serial);
        let mut qemu = Killed(qemu(ours, memory, &saved.words, &saved.serial).spawn().context("QEMU is not there")?);
        wait_for_tick(&saved.serial)?;
        let mut monitor = qemu.0.stdin.take().context("QEMU has no monitor")?;
        // Without a limit of bandwidth; a migration that is not detached ends before the next command.
        let save = format!(
            "migrate_set_parameter max-bandwidth 100G\nmigrate \"exec:cat > {}\"\nquit\n",
            saved.file.display()
        );
        monitor.write_all(save.as_bytes()).context("QEMU's monitor is gone")?;
        let until = Instant::now() + PATIENCE;
        while qemu.0.try_wait().context("QEMU is gone")?.is_none() {
            ensure!(Instant::now() < until, "QEMU does not save its guest");
            thread::sleep(POLL);
        }
        ensure!(fs::metadata(&saved.file).is_ok_and(|meta| meta.len() > 1 << 20), "QEMU saved nothing");
        Ok(saved)
    }

    fn restore(&self) -> Result<Duration> {
        let _ = fs::remove_file(&self.serial);
        let mut command = qemu(self.ours, self.memory, &self.words, &self.serial);
        command.arg("-incoming").arg(format!("exec:cat {}", self.file.display()));
        let begun = Instant::now();
        let _qemu = Killed(command.spawn().context("QEMU is not there")?);
        wait_for_tick(&self.serial)?;
        Ok(begun.elapsed())
    }
}

/// A process that ends with this.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// When a guest's lines came.
struct Ticks {
    lines: Receiver<Instant>,
    _console: Killed,
}

impl Ticks {
    fn of(ours: &Ours<'_>, name: &str) -> Result<Self> {
        let mut command = ours.command(&["console", name]);
        let mut console = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("no console")?;
        let output = console.stdout.take().context("the console says nothing")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                if line.is_err() || sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { lines, _console: Killed(console) })
    }

    /// The longest that no line came while `act` was done, seconds.
    fn gap(&self, act: impl FnOnce() -> Result<()>) -> Result<f64> {
        while self.lines.try_recv().is_ok() {}
        let mut last = self.lines.recv_timeout(PATIENCE).context("the guest does not tick")?;
        act()?;
        let end = Instant::now();
        let mut gap = Duration::ZERO;
        while last < end {
            let Ok(next) = self.lines.recv_timeout(PATIENCE) else { bail!("the guest ticks no more") };
            gap = gap.max(next - last);
            last = next;
        }
        Ok(gap.as_secs_f64())
    }
}

fn snapshots_and_forks(ours: &Ours<'_>, report: &mut Report) -> Result<()> {
    let (memory, used, dirty) = LIVE;
    ours.create("live", memory, &words(used, dirty), None)?;
    ours.ok(&["start", "live", "--headless"])?;
    wait_for_tick(&ours.log("live"))?;
    let ticks = Ticks::of(ours, "live")?;
    let quiet = |what: &str, seconds: f64| Series { name: what.into(), samples: vec![seconds * 1000.0] };
    // What a reader sees of a guest that nobody stops: the floor of what follows.
    let undisturbed = ticks.gap(|| {
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    let mut stops = Series::new("Orangery");
    let mut takes = Series::new("Orangery");
    for number in 0..MOMENTS {
        let begun = Instant::now();
        stops
            .samples
            .push(ticks.gap(|| ours.ok(&["snapshot", "take", "live", &number.to_string()]).map(drop))? * 1000.0);
        takes.samples.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let savevm = savevm(ours)?;
    let what = format!("{memory} MiB, {used} in use, {dirty} MiB/s change");
    let others = vec![savevm, quiet("not stopped at all", undisturbed)];
    let name = format!("longest stop of a guest by a live snapshot, {what}");
    report.add(Figure { name, unit: "ms", more_is_better: false, ours: stops, others });
    let name = format!("a live snapshot from the command to its end, {what}");
    report.add(Figure { name, unit: "ms", more_is_better: false, ours: takes, others: Vec::new() });

    let mut stops = Series::new("Orangery");
    let mut ready = Series::new("Orangery");
    let mut shared = Series::new("Orangery");
    for number in 0..MOMENTS {
        let fork = format!("fork-{number}");
        let begun = Instant::now();
        stops.samples.push(ticks.gap(|| ours.ok(&["fork", "live", &fork]).map(drop))? * 1000.0);
        wait_for_tick(&ours.log(&fork))?;
        ready.samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        // Stopped soon: it shall not have written to all of its memory.
        ours.ok(&["pause", &fork])?;
    }
    for number in 0..MOMENTS {
        let shown: serde_json::Value =
            serde_json::from_str(&ours.ok(&["show", &format!("fork-{number}"), "--json"])?).context("no JSON")?;
        let pid = shown["running"]["pid"].as_u64().context("a fork does not run")?;
        shared.samples.push(pss(pid)?);
    }
    for name in (0..MOMENTS).map(|number| format!("fork-{number}")).chain(["live".into()]) {
        ours.ok(&["stop", &name, "--force"])?;
    }
    let others = vec![quiet("not stopped at all", undisturbed)];
    let name = format!("longest stop of a guest by a fork, {what}");
    report.add(Figure { name, unit: "ms", more_is_better: false, ours: stops, others });
    let name = format!("a fork from the command to its first tick, {what}");
    report.add(Figure { name, unit: "ms", more_is_better: false, ours: ready, others: Vec::new() });
    let others = vec![Series { name: "what the guest uses".into(), samples: vec![f64::from(used)] }];
    let name = format!("memory of a fork (PSS), {what}");
    report.add(Figure { name, unit: "MiB", more_is_better: false, ours: shared, others });
    Ok(())
}

/// A process's share of memory, MiB.
fn pss(pid: u64) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("the kernel tells no PSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("the kernel tells no PSS")?;
    Ok(kib / 1024.0)
}

/// How long QEMU's snapshot stops the same guest.
fn savevm(ours: &Ours<'_>) -> Result<Series> {
    let (memory, used, dirty) = LIVE;
    let disk = ours.folder.join("qemu.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M").status();
    ensure!(made.context("qemu-img is not there")?.success(), "qemu-img made no image");
    let mut command = qemu(ours, memory, &words(used, dirty), Path::new("/dev/stdout"));
    command.arg("-drive").arg(format!("if=none,id=d,format=qcow2,file={}", disk.display()));
    command.args(["-device", "virtio-blk-device,drive=d"]).stdout(Stdio::piped());
    let mut qemu = Killed(command.spawn().context("QEMU is not there")?);
    let output = qemu.0.stdout.take().context("QEMU says nothing")?;
    let mut monitor = qemu.0.stdin.take().context("QEMU has no monitor")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let tick = String::from_utf8_lossy(&line).contains("tick ");
            if tick && sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    lines.recv_timeout(PATIENCE).context("QEMU's guest does not tick")?;
    let mut series = Series::new("QEMU microvm, savevm");
    for number in 0..MOMENTS {
        while lines.try_recv().is_ok() {}
        let mut last = lines.recv_timeout(PATIENCE).context("QEMU's guest does not tick")?;
        monitor.write_all(format!("savevm s{number}\n").as_bytes()).context("QEMU's monitor is gone")?;
        let (begun, mut gap) = (Instant::now(), Duration::ZERO);
        // Its one long stop is over when it has ticked for a second after it.
        let mut stopped = begun;
        while last < stopped + Duration::from_secs(1) {
            let next = lines.recv_timeout(PATIENCE).context("QEMU's guest ticks no more")?;
            if next - last > gap {
                (gap, stopped) = (next - last, next);
            }
            last = next;
        }
        series.samples.push(gap.as_secs_f64() * 1000.0);
    }
    Ok(series)
}
