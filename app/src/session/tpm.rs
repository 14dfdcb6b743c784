//! A machine's TPM: swtpm(8), a child of the process that runs the machine.
//!
//! The child's standard input is its control channel, so there is no socket in the file system; it ends when the channel
//! closes, and the kernel ends it when this process dies in any way. It writes what it keeps for good into its folder, under
//! a new name and renamed, whenever a command changes it: an end at any moment loses nothing.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmm_core::backend::tpm::{Limits, Swtpm, TpmBackend, TpmError};

use crate::control::runtime_folder;
use crate::library::preflight;

/// What swtpm says, in its folder.
const LOG: &str = "swtpm.log";
/// How long a swtpm that was told to end may take before it is made to.
const END: Duration = Duration::from_secs(5);

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
pub enum TpmStartError {
    /// It is not installed.
    #[error("the program swtpm, which is the TPM, is not installed; install it ({}) or remove the TPM from the machine", .command)]
    Missing {
        /// The command that installs it here.
        command: &'static str,
    },
    /// The host refused.
    #[error("could not {what}")]
    Host {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It started and is of no use.
    #[error("swtpm does not work; it says: {said} ({})", .log.display())]
    Failed {
        /// The last line that it wrote.
        said: String,
        /// Where it wrote.
        log: PathBuf,
        /// What the monitor saw.
        #[source]
        source: TpmError,
    },
}

impl TpmStartError {
    fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> TpmStartError {
        move |source| TpmStartError::Host { what: what.into(), source }
    }
}

/// A running swtpm. It has ended when this is gone.
#[derive(Debug)]
pub struct TpmProcess {
    child: Child,
    /// A folder that goes with it.
    throwaway: Option<PathBuf>,
}

impl TpmProcess {
    /// Starts the TPM whose state is in `folder`, which is made where it is missing; without a folder its state goes with
    /// it. Call it from a thread that lives as long as the machine: the kernel ends the child with the thread that made
    /// it.
    ///
    /// # Errors
    /// swtpm is not there, does not start, or can't read the folder's state.
    pub fn start(folder: Option<&Path>) -> Result<(TpmProcess, Box<dyn TpmBackend>), TpmStartError> {
        let (folder, throwaway) = match folder {
            Some(folder) => {
                make_folder(folder).map_err(TpmStartError::host(format!("make the folder {}", folder.display())))?;
                (folder.to_path_buf(), None)
            }
            None => {
                let folder = throwaway_folder().map_err(TpmStartError::host("make a folder for the TPM's state"))?;
                (folder.clone(), Some(folder))
            }
        };
        let what = "start swtpm";
        let (ours, theirs) = UnixStream::pair().map_err(TpmStartError::host(what))?;
        let started = spawn(&folder, theirs.into());
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                throwaway.iter().for_each(|folder| drop(std::fs::remove_dir_all(folder)));
                return Err(if error.kind() == io::ErrorKind::NotFound {
                    TpmStartError::Missing { command: preflight::install_swtpm() }
                } else {
                    TpmStartError::host(what)(error)
                });
            }
        };
        let process = TpmProcess { child, throwaway };
        let log = folder.join(LOG);
        // Power at once: a state that it can't read is told now, with its own words.
        let connected = Swtpm::connect(ours, Limits::default()).and_then(|mut tpm| tpm.power_on().map(|()| tpm));
        match connected {
            Ok(tpm) => Ok((process, Box::new(tpm))),
            Err(source) => Err(TpmStartError::Failed { said: last_line(&log), log, source }),
        }
    }
}

impl Drop for TpmProcess {
    fn drop(&mut self) {
        let until = Instant::now() + END;
        // Its channels are closed by now, unless the machine hangs.
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that has ended is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(folder) = &self.throwaway {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn spawn(folder: &Path, control: OwnedFd) -> io::Result<Child> {
    let log = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(folder.join(LOG))?;
    let mut command = Command::new("swtpm");
    // Paths are relative, for its options take no comma in one.
    command.args(["socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--ctrl", "type=unixio,clientfd=0"]);
    command.args(["--terminate"]).current_dir(folder);
    command.stdin(control).stdout(Stdio::from(log.as_fd().try_clone_to_owned()?)).stderr(Stdio::from(log));
    // A terminal's Ctrl+C is for the machine, which then still needs its TPM.
    command.process_group(0);
    let parent = rustix::process::getpid();
    let follow = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // It may have died before that.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: both calls are async-signal-safe and touch no memory.
    unsafe { command.pre_exec(follow) };
    command.spawn()
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A folder for the TPM of a machine that is not kept. Those of processes that were killed are removed.
fn throwaway_folder() -> io::Result<PathBuf> {
    let runtime = runtime_folder()?;
    for entry in std::fs::read_dir(&runtime)?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("tpm-")).and_then(|pid| pid.parse().ok());
        let owner = owner.and_then(rustix::process::Pid::from_raw);
        if owner.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let folder = runtime.join(format!("tpm-{}", std::process::id()));
    // Of an earlier process that had this number.
    let _ = std::fs::remove_dir_all(&folder);
    make_folder(&folder)?;
    Ok(folder)
}

/// The last line of what swtpm wrote.
fn last_line(log: &Path) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    let read = File::open(log).and_then(|file| file.take(64 << 10).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    match (read, line) {
        (Ok(_), Some(line)) => line.trim_start_matches("swtpm: ").to_string(),
        _ => "nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TPM2_GetRandom and, before it, TPM2_Startup.
    const GET_RANDOM: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];
    const STARTUP: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

    #[test]
    fn its_state_lies_in_the_machine_s_folder_and_the_process_ends_with_its_channels() {
        let dir = tempfile::tempdir().unwrap();
        // A comma and a space are part of many names.
        let folder = dir.path().join("a, b");
        let (process, mut tpm) = TpmProcess::start(Some(&folder)).unwrap();
        tpm.execute(0, STARTUP).unwrap();
        assert_eq!(tpm.execute(0, GET_RANDOM).unwrap()[6..12], [0, 0, 0, 0, 0, 16]);
        assert!(folder.join("tpm2-00.permall").is_file());
        let pid = process.child.id();
        drop(tpm);
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_state_that_is_damaged_is_told_in_swtpm_s_own_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tpm2-00.permall"), "no state at all").unwrap();
        let error = TpmProcess::start(Some(dir.path())).err().unwrap();
        let TpmStartError::Failed { said, log, source } = error else { panic!("{error}") };
        assert!(said != "nothing" && log.is_file(), "{said}");
        assert!(matches!(source, TpmError::Refused { .. } | TpmError::Gone), "{source}");
    }
}
