//! `orangery boot` and `orangery demo`: a machine that is not kept, its serial port on the terminal.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use vmm_core::config::{Boot, DiskBus, DiskConfig, VmConfig};

use super::launch::Announcement;
use super::run::{RunError, end, finish};
use super::signals::Signals;
use super::terminal::{self, Ended};
use super::{Identity, Session, Start, Streams};

/// A machine that nobody keeps.
#[derive(Debug)]
pub struct Throwaway {
    /// What its window is called.
    pub title: String,
    /// The machine.
    pub config: VmConfig,
    /// No window.
    pub headless: bool,
    /// Files that `config` names by `/proc/self/fd`, and that go with this process.
    files: Vec<File>,
}

impl Throwaway {
    /// A machine with this configuration.
    pub fn new(title: impl Into<String>, config: VmConfig, headless: bool) -> Throwaway {
        Throwaway { title: title.into(), config, headless, files: Vec::new() }
    }

    /// Adds an empty disk that has no name, in `$TMPDIR` or `/var/tmp`: its space is free again when this process ends.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn add_disk(&mut self, size: u64, bus: DiskBus) -> io::Result<()> {
        let folder = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode)?);
        file.set_len(size)?;
        let path = self.keep(file);
        self.config.disks.push(DiskConfig { bus, ..DiskConfig::new(path) });
        Ok(())
    }

    /// Keeps a file open while the machine lives, and gives the path that leads to it.
    fn keep(&mut self, file: File) -> PathBuf {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.files.push(file);
        path.into()
    }
}

/// The memory of the demonstration, MiB.
const DEMO_MEMORY: u64 = 128;
/// What the demonstration's guest is told.
const DEMO_CMDLINE: &str = "test=all demo then=idle";

/// The built-in guest: it tests the machine's devices, draws a moving picture, and shows keys and pointer.
///
/// # Errors
/// The host is out of memory or descriptors.
pub fn demo(headless: bool) -> Result<Throwaway, RunError> {
    let what = "unpack the built-in guest";
    let memfd = rustix::fs::memfd_create("orangery-demo", MemfdFlags::CLOEXEC).map_err(io::Error::from);
    let mut file = File::from(memfd.map_err(RunError::host(what))?);
    file.write_all(orangery_assets::PROBE_ELF).map_err(RunError::host(what))?;
    let config = VmConfig::new(2, DEMO_MEMORY);
    let mut demo = Throwaway::new("Demo", config, headless);
    let kernel = demo.keep(file);
    demo.config.boot = Boot::Kernel { kernel, initrd: None, cmdline: DEMO_CMDLINE.into() };
    Ok(demo)
}

/// Runs the machine until it stops. With `announce` its start is told and its serial port goes nowhere; without, the
/// serial port is on the terminal.
///
/// # Errors
/// It cannot be built, or did not end by the guest's power-off.
pub fn boot(throwaway: &Throwaway, announce: Option<&dyn Fn(&Announcement)>) -> Result<(), RunError> {
    let signals = Signals::take().map_err(RunError::host("take this process's signals"))?;
    if throwaway.headless {
        without_window(throwaway, &signals, announce)
    } else {
        with_window(throwaway, &signals, announce)
    }
}

fn started(throwaway: &Throwaway) -> Announcement {
    Announcement::Started { id: String::new(), name: throwaway.title.clone(), pid: std::process::id() }
}

fn beginning(throwaway: &Throwaway) -> Start<'_> {
    let name = throwaway.title.clone();
    let identity = Identity { id: String::new(), name, tpm: None, library: None, without_saving: false };
    Start { identity, config: &throwaway.config, checkpoint: None, log: None }
}

fn without_window(
    throwaway: &Throwaway,
    signals: &Signals,
    announce: Option<&dyn Fn(&Announcement)>,
) -> Result<(), RunError> {
    let (session, streams) = Session::start(beginning(throwaway), || (), |_| ())
        .map_err(|source| RunError::Build { name: throwaway.title.clone(), source })?;
    match announce {
        Some(announce) => {
            announce(&started(throwaway));
            drain(&session, streams)?;
            super::run::wait(&session, signals).map_err(RunError::host("wait for the machine"))?;
            finish(&session)
        }
        None => conclude(&session, terminal::serve(&session, &streams, signals)),
    }
}

/// Ends the machine as its terminal ended, and says whether that was well.
fn conclude(session: &Session, ended: io::Result<Ended>) -> Result<(), RunError> {
    let ended = ended.map_err(|error| {
        end(session);
        RunError::Host { what: "use the terminal", source: error }
    })?;
    let why = match ended {
        Ended::Stream => return finish(session),
        Ended::Escape => "powered off by Ctrl-]",
        Ended::Output => "powered off, because nobody reads its serial port any more",
        Ended::Signal => "powered off by a second signal",
    };
    end(session);
    finish(session)?;
    Err(RunError::Ended(why.into()))
}

/// Lets the streams of a machine that nobody listens to run dry, on a thread of its own.
fn drain(session: &std::sync::Arc<Session>, streams: Streams) -> Result<(), RunError> {
    let session = session.clone();
    let thread = std::thread::Builder::new().name("streams".into());
    // Without it the guest's ports are full and it goes on all the same.
    let discard = move || drop(terminal::discard(&session, &streams));
    thread.spawn(discard).map_err(RunError::host("start a thread"))?;
    Ok(())
}

#[cfg(not(feature = "gui"))]
fn with_window(_: &Throwaway, _: &Signals, _: Option<&dyn Fn(&Announcement)>) -> Result<(), RunError> {
    Err(RunError::Window(anyhow::anyhow!("this Orangery was built without windows; use --headless")))
}

#[cfg(feature = "gui")]
fn with_window(
    throwaway: &Throwaway,
    signals: &Signals,
    announce: Option<&dyn Fn(&Announcement)>,
) -> Result<(), RunError> {
    use super::hub::{Hub, Line};
    use super::{line, window};
    use crate::control::Stream;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    let options = window::options(&throwaway.title, &throwaway.config);
    let mut machine = None;
    // How the terminal's thread ended, for the exit code.
    let (told, terminal_ended) = channel();
    let shown = window::show(
        options,
        beginning(throwaway),
        |session, streams| {
            machine = Some(session.clone());
            // The window's terminal is at the serial port too.
            let Streams { serial, console, debug } = streams;
            let lines = [serial, console, debug].map(|port| Line::new(port, None)).into();
            let hub = Hub::start(lines).map_err(RunError::host("start the thread of the machine's streams"))?;
            let hub = session.hub.get_or_init(|| hub);
            let Some(announce) = announce else {
                let (ours, theirs) = UnixStream::pair().map_err(RunError::host("connect the terminal"))?;
                hub.attach_patiently(line(Stream::Serial), theirs);
                let thread = std::thread::Builder::new().name("terminal".into());
                let session = session.clone();
                let serve = move || {
                    let concluded = conclude(&session, terminal::relay(&ours));
                    let _ = told.send(concluded);
                };
                thread.spawn(serve).map_err(RunError::host("start a thread"))?;
                return Ok(());
            };
            announce(&started(throwaway));
            Ok(())
        },
        signals,
    );
    let Some(session) = machine else { return shown };
    if !session.has_stopped() {
        end(&session);
    }
    let finished = finish(&session);
    if let Some(hub) = session.hub.get() {
        hub.finish();
    }
    // The thread ends when it has shown the guest's last words, and puts the terminal back.
    let concluded = if announce.is_none() { terminal_ended.recv().unwrap_or(Ok(())) } else { Ok(()) };
    shown.and(finished).and(concluded)
}
