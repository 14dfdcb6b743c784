//! The nested host: a machine with hardware KVM, everywhere.
//!
//! On a machine with VT-x or AMD-V the tests' scripts simply run. Everywhere else this boots an outer machine, QEMU's
//! faithful emulation of an AMD processor with SVM, with Debian's own kernel and kvm-amd, on this machine's own root
//! file system (read-only, under a RAM overlay). Scripts run in there as they would on a person's machine, with the same
//! programs at the same paths. Booting takes some ten seconds, so a test program boots it once and runs many scripts.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::checks;
use crate::initramfs::Initramfs;
use crate::kvm::Kvm;
use crate::media::{Flavour, Kernel};
use crate::process::Process;

/// How long the outer machine may take to its agent's first word. Emulation on a busy machine is slow.
const BOOT: Duration = Duration::from_secs(240);
/// What a script is given beyond its own limit before the machine counts as dead.
const GRACE: Duration = Duration::from_secs(30);
/// How many hosts a test may use up that die.
const ATTEMPTS: u32 = 12;
/// How many it may have if it fails on one that lives.
const DOUBTS: u32 = 6;
/// How often a script's output is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Drivers of the outer machine: the first four to reach the root file system, the others for the tests.
const MODULES: &[&str] =
    &["virtio_pci", "9pnet_virtio", "9p", "overlay", "kvm-amd", "tun", "fuse", "loop", "vhost_net", "vhost_vsock"];

/// A place with hardware KVM where scripts run.
#[derive(Debug)]
pub struct Host {
    exchange: PathBuf,
    next: AtomicU32,
    machine: Option<Machine>,
}

/// The outer machine, where this one lacks hardware KVM.
#[derive(Debug)]
struct Machine {
    control: Mutex<UnixStream>,
    waiting: Waiting,
    process: Process,
    log: PathBuf,
    _socket: tempfile::TempDir,
}

/// Scripts that run in the outer machine, and where their exit codes go. None when the machine has died.
type Waiting = Arc<Mutex<Option<HashMap<String, Sender<i32>>>>>;

impl Host {
    /// Runs a test on the one host of this test program, which the first to ask boots. One test at a time: an emulated host
    /// has little to share. A host that dies is the emulator's failure, not the test's: it is counted (`./dev test` tells),
    /// and the test gets another. So is a test that fails on an emulated host: guests have been seen to stand still
    /// there that never do elsewhere. What fails for a reason fails again.
    pub fn with_shared(mut test: impl FnMut(&Host) -> Result<()>) -> Result<()> {
        static HOST: Mutex<Option<Host>> = Mutex::new(None);
        let mut shared = HOST.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attempt = 1;
        loop {
            let host = match &mut *shared {
                Some(host) => host,
                none => none.insert(Host::start()?),
            };
            let result = test(host);
            let died = host.has_died();
            let again = match &result {
                Ok(()) => false,
                Err(_) if died => attempt < ATTEMPTS,
                Err(error) => attempt < DOUBTS && host.doubt(error),
            };
            if died || again {
                *shared = None;
            }
            if !again {
                return result;
            }
            attempt += 1;
        }
    }

    /// A host of the caller's own.
    pub fn start() -> Result<Self> {
        Self::start_on(Kvm::detect())
    }

    /// A host in the outer machine, wherever it runs.
    pub fn start_nested() -> Result<Self> {
        Self::start_on(Kvm::None)
    }

    fn start_on(kvm: Kvm) -> Result<Self> {
        let exchange = new_exchange()?;
        let machine = if kvm == Kvm::Hardware { None } else { Some(Machine::boot(&exchange)?) };
        Ok(Self { exchange, next: AtomicU32::new(1), machine })
    }

    /// Whether the outer machine has ended by itself, or its kernel has; then its folder holds a file `died` with its last
    /// words.
    fn has_died(&self) -> bool {
        let dead = |machine: &&Machine| !machine.process.is_running() || has_given_up(&machine.log);
        let Some(machine) = self.machine.as_ref().filter(dead) else { return false };
        let words = machine.last_words();
        eprintln!("the nested host died: {words}");
        if let Err(error) = fs::write(self.exchange.join("died"), &words) {
            eprintln!("could not record that: {error}");
        }
        true
    }

    /// Whether a test that failed deserves another host: on an emulated one. Then its folder holds a file `doubted` with what
    /// failed.
    fn doubt(&self, error: &anyhow::Error) -> bool {
        if self.machine.is_none() {
            return false;
        }
        eprintln!("a test failed on the nested host, and gets another: {error:#}");
        if let Err(error) = fs::write(self.exchange.join("doubted"), format!("{error:#}")) {
            eprintln!("could not record that: {error}");
        }
        true
    }

    /// Prepares the host for UEFI firmware. OVMF writes CR8 at the end of each of its timer's interrupts; QEMU's emulation
    /// of AMD's virtualization fails an assertion there when the next interrupt waits already, as it does where a hundred
    /// a second are too many. KVM can make a guest's periodic timer slower.
    pub fn prepare_for_uefi(&self) -> Result<()> {
        if self.machine.is_some() {
            let script = "echo 200000 > /sys/module/kvm/parameters/min_timer_period_us";
            self.run("timers", script, GRACE)?.success()?;
        }
        Ok(())
    }

    /// A folder for scripts on a file system of the host's own, where locks, sockets and direct I/O work as everywhere.
    /// It is not visible outside of a nested host, and may not exist yet.
    pub fn scratch(&self) -> PathBuf {
        match self.machine {
            Some(_) => PathBuf::from("/tmp/scratch"),
            None => self.exchange.join("scratch"),
        }
    }

    /// Runs a script of bash to its end, which must come within `limit`.
    pub fn run(&self, name: &str, script: &str, limit: Duration) -> Result<Output> {
        self.spawn(name, script, limit)?.wait()
    }

    /// Starts a script of bash in a folder of its own, `artifacts/…/NUMBER-NAME`, which has the same path inside the host
    /// and is kept: what the script writes there can be read outside at once. After `limit` the script is killed.
    pub fn spawn(&self, name: &str, script: &str, limit: Duration) -> Result<Step> {
        let id = format!("{}-{name}", self.next.fetch_add(1, Ordering::Relaxed));
        ensure!(
            id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
            "'{name}' must be one plain word"
        );
        let folder = self.exchange.join(&id);
        fs::create_dir(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        for (file, content) in [("script", script), ("stdout", ""), ("stderr", "")] {
            fs::write(folder.join(file), content)
                .with_context(|| format!("could not write into {}", folder.display()))?;
        }
        let (code, exit) = mpsc::channel();
        let log = match &self.machine {
            Some(machine) => {
                machine.run(&id, limit, code)?;
                machine.log.clone()
            }
            None => {
                run_here(&folder, limit, code)?;
                folder.join("stderr")
            }
        };
        Ok(Step { folder, exit, code: None, limit: Instant::now() + limit + GRACE, log })
    }
}

impl Machine {
    fn boot(exchange: &Path) -> Result<Self> {
        let socket = tempfile::tempdir().context("could not make a folder for the control socket")?;
        let path = socket.path().join("control");
        let log = exchange.join("serial.log");
        let mut command = outer_machine(exchange, "")?;
        command
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .arg("-serial")
            .arg(format!("unix:{},server=on,wait=on", path.display()))
            .args(["-display", "none"])
            .stdin(Stdio::null())
            .stderr(File::create(exchange.join("qemu.log")).context("could not make QEMU's log")?);
        let process = Process::start(command)?;
        let (ready, boot) = mpsc::channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        // QEMU waits for this connection before it starts the machine, so no line is lost.
        let control = connect(&path, &process).with_context(|| read_lossy(&exchange.join("qemu.log")))?;
        let reader = control.try_clone().context("could not share the control socket")?;
        thread::spawn({
            let waiting = waiting.clone();
            move || listen(reader, ready, waiting)
        });
        let machine = Self { control: Mutex::new(control), waiting, process, log, _socket: socket };
        if boot.recv_timeout(BOOT).is_err() {
            bail!("the outer machine did not come up. {}", machine.last_words());
        }
        Ok(machine)
    }

    fn run(&self, id: &str, limit: Duration, code: Sender<i32>) -> Result<()> {
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(id.to_owned(), code),
            None => bail!("the outer machine has died. {}", self.last_words()),
        };
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(control, "run {id} {}", limit.as_secs().max(1)).context("could not reach the nested host's agent")
    }

    /// What its kernel printed last.
    fn last_words(&self) -> String {
        let state = if self.process.is_running() { "it still runs" } else { "it has ended" };
        format!("{state}; the end of {}:\n{}", self.log.display(), tail(&self.log))
    }
}

/// A script that runs.
#[derive(Debug)]
pub struct Step {
    folder: PathBuf,
    exit: Receiver<i32>,
    code: Option<i32>,
    limit: Instant,
    log: PathBuf,
}

impl Step {
    /// Its folder, where it runs and leaves its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.folder.join("stdout"))
    }

    /// Its exit code, once it has ended. It is an error when the host died, or the script is long past its limit.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        if self.code.is_none() {
            self.code = match self.exit.try_recv() {
                Ok(code) => Some(code),
                Err(TryRecvError::Empty) if Instant::now() < self.limit && !has_given_up(&self.log) => None,
                Err(_) => {
                    bail!("no answer from the nested host; the end of {}:\n{}", self.log.display(), tail(&self.log))
                }
            };
        }
        Ok(self.code)
    }

    /// Waits until a file in its folder (such as `stdout`) contains the text, and returns the file's content. It is an
    /// error when the script ends first.
    pub fn wait_for(&mut self, file: &str, text: &str) -> Result<String> {
        loop {
            // Asked before the file is read, so that what a script wrote last still counts.
            let ended = self.ended()?;
            let content = read_lossy(&self.folder.join(file));
            if content.contains(text) {
                return Ok(content);
            }
            if let Some(code) = ended {
                let (folder, end) = (self.folder.display(), last_lines(&content));
                bail!("the script ended with {code}, and '{text}' never came in {folder}/{file}, which ends:\n{end}");
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<Output> {
        let code = loop {
            match self.ended()? {
                Some(code) => break code,
                None => thread::sleep(POLL),
            }
        };
        let stdout = read_lossy(&self.folder.join("stdout"));
        let stderr = read_lossy(&self.folder.join("stderr"));
        Ok(Output { code, stdout, stderr, folder: self.folder })
    }
}

/// How a script ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; 124 or 137 when it was killed at its limit.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed as errors.
    pub stderr: String,
    /// Its folder with the files it left.
    pub folder: PathBuf,
}

impl Output {
    /// Expects these checks of what it printed.
    pub fn checks(&self, expected: &[&str]) -> Result<()> {
        checks::expect(&self.stdout, expected).with_context(|| format!("see {}", self.folder.display()))
    }

    /// Itself when the script ended with 0; otherwise an error that shows what it printed.
    pub fn success(self) -> Result<Self> {
        if self.code == 0 {
            return Ok(self);
        }
        let Self { code, stdout, stderr, folder } = &self;
        let (stdout, stderr) = (last_lines(stdout), last_lines(stderr));
        bail!("{}/script ended with {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", folder.display())
    }
}

/// Boots the outer machine with a shell on this terminal and waits until it is left. Ctrl+A X ends it at once.
pub fn shell() -> Result<()> {
    let mut command = outer_machine(&new_exchange()?, "orangery.shell")?;
    command.args(["-serial", "mon:stdio", "-display", "none"]);
    let status = command.status().context("could not run qemu-system-x86_64")?;
    ensure!(status.success(), "the outer machine failed: {status}");
    Ok(())
}

/// The outer machine without its serial ports.
fn outer_machine(exchange: &Path, options: &str) -> Result<Command> {
    let kernel = Kernel::fetch(Flavour::Generic)?;
    let initramfs = exchange.join("initramfs");
    write_initramfs(&kernel, exchange, &initramfs)?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-smp", "2", "-m", "6144"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet panic=-1 softlockup_panic=1 watchdog_thresh=30 mitigations=off nokaslr {options}"
        ))
        .arg("-virtfs")
        .arg("local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap")
        .arg("-virtfs")
        .arg(format!("local,path={},mount_tag=exchange,security_model=none", exchange.display()));
    Ok(command)
}

fn write_initramfs(kernel: &Kernel, exchange: &Path, path: &Path) -> Result<()> {
    let mut fs = Initramfs::with_busybox()?;
    fs.file("init", include_bytes!("nested/init.sh"), 0o755);
    fs.file("run/agent", include_bytes!("nested/agent.sh"), 0o644);
    fs.file("run/exchange", exchange.to_string_lossy().as_bytes(), 0o644);
    fs.modules(kernel, MODULES)?;
    fs.write(path)
}

/// A new folder for the scripts of one host.
fn new_exchange() -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("host-").tempdir_in(crate::artifacts()?);
    Ok(folder.context("could not make a folder for the nested host")?.keep())
}

/// Connects to QEMU's end of the control socket, which appears shortly after its start.
fn connect(path: &Path, process: &Process) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if !process.is_running() => {
                return Err(anyhow!(error).context("qemu-system-x86_64 ended at once"));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Reads the agent's lines until the machine ends.
fn listen(control: UnixStream, ready: Sender<()>, waiting: Waiting) {
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next().and_then(|code| code.parse().ok())) {
            // Nobody listens any more when the boot took too long.
            (Some("ready"), ..) => drop(ready.send(())),
            (Some("done"), Some(id), Some(code)) => {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(exit) = waiting.as_mut().and_then(|waiting| waiting.remove(id)) {
                    // Nobody listens any more when the test gave up.
                    let _ = exit.send(code);
                }
            }
            _ => eprintln!("the nested host's agent said: {line}"),
        }
    }
    // Dropping the senders tells everyone who waits that no answer will come.
    *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Runs a script on this machine, in the same way as the agent does.
fn run_here(folder: &Path, limit: Duration, code: Sender<i32>) -> Result<()> {
    let file =
        |name: &str| fs::OpenOptions::new().append(true).open(folder.join(name)).context("could not open a file");
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &limit.as_secs().max(1).to_string(), "bash", "./script"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(file("stdout")?)
        .stderr(file("stderr")?);
    let process = Process::start(command)?;
    thread::spawn(move || {
        let group = process.id.to_string();
        let status = process.wait();
        // What the script left running; there may be nothing.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).stderr(Stdio::null()).status();
        if let Ok(status) = status {
            let _ = code.send(status.code().unwrap_or(137));
        }
    });
    Ok(())
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// How long the agent may be silent.
const SILENCE: Duration = Duration::from_secs(120);

/// Whether the outer machine's kernel has given up: a panicking one does not always end the machine, and where the emulator
/// loses a processor the agent no longer touches its file `alive`.
fn has_given_up(log: &Path) -> bool {
    let touched = fs::metadata(log.with_file_name("alive")).and_then(|about| about.modified());
    let is_silent = touched.is_ok_and(|touched| touched.elapsed().is_ok_and(|passed| passed > SILENCE));
    is_silent || read_lossy(log).contains("Kernel panic - not syncing")
}

fn tail(path: &Path) -> String {
    last_lines(&read_lossy(path)).to_owned()
}

/// The text's last forty lines.
pub(crate) fn last_lines(text: &str) -> &str {
    let start = text.trim_end().rmatch_indices('\n').nth(39).map_or(0, |(at, _)| at + 1);
    &text[start..]
}
