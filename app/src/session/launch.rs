//! Starting a machine in a process of its own, and learning whether that went well.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use serde::{Deserialize, Serialize};
use vmm_core::checkpoint::Checkpoint;

use super::Manner;
use crate::control::protocol::MAX_LINE;
use crate::library::{Library, Machine};

/// What `orangery run --json` writes as its only line on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Announcement {
    /// The machine runs and its control socket answers.
    Started {
        /// Its id; absent where the machine is not kept.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        id: String,
        /// Its name.
        name: String,
        /// The process that runs it.
        pid: u32,
    },
    /// It could not be started.
    Error {
        /// The exit code that follows.
        code: u8,
        /// Why, a sentence.
        message: String,
    },
}

/// Why a machine did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    /// What failed and why.
    pub message: String,
    /// The exit code a command should end with (see `orangery --help`).
    pub code: u8,
}

impl LaunchError {
    fn new(message: String) -> LaunchError {
        LaunchError { message, code: 1 }
    }
}

/// Starts `machine` in a new process, and waits until it runs or has failed. The process
/// outlives this one. Blocks for as long as the start takes.
///
/// # Errors
/// The process cannot be made, or the machine cannot be built.
pub fn launch(library: &Library, machine: &Machine, manner: Manner) -> Result<u32, LaunchError> {
    launch_with(&own_program()?, library.root(), machine, manner)
}

/// Starts the demonstration in a new process and waits until it runs or has failed.
///
/// # Errors
/// As [`launch`].
pub fn launch_demo() -> Result<u32, LaunchError> {
    let mut command = Command::new(own_program()?);
    command.args(["demo", "--json"]).stderr(Stdio::null());
    detach(command, "the demonstration", "start it in a terminal to see why: orangery demo")
}

/// [`launch`] with another program than this one.
///
/// # Errors
/// As [`launch`].
pub fn launch_with(program: &Path, root: &Path, machine: &Machine, manner: Manner) -> Result<u32, LaunchError> {
    let mut command = Command::new(program);
    command.args(["run", "--json"]).arg(&machine.id);
    let Manner { headless, without_saving } = manner;
    command.args(headless.then_some("--headless")).args(without_saving.then_some("--without-saving"));
    command.env(crate::library::ROOT_VARIABLE, root).current_dir(machine.folder()).stderr(errors(machine));
    detach(command, &format!("{:?}", machine.name), &format!("see {}", machine.logs().display()))
}

/// Starts `machine`, which was just made, in a new process that goes on from `checkpoint`, which goes with it in memory.
///
/// # Errors
/// As [`launch`].
pub(super) fn launch_fork(
    root: &Path,
    machine: &Machine,
    headless: bool,
    checkpoint: &Checkpoint,
) -> Result<u32, LaunchError> {
    let failed = |error: std::io::Error| LaunchError::new(format!("could not hand the machine over: {error}"));
    let state = rustix::fs::memfd_create("orangery-fork", rustix::fs::MemfdFlags::CLOEXEC);
    let state = File::from(state.map_err(|error| failed(error.into()))?);
    let layers = checkpoint.hand_over(&state).map_err(failed)?;
    let files: Vec<i32> = std::iter::once(&state).chain(layers.iter().map(|l| &l.file)).map(File::as_raw_fd).collect();
    let numbers: Vec<String> = files.iter().map(i32::to_string).collect();
    let mut command = Command::new(own_program()?);
    command.args(["run", "--json"]).arg(&machine.id).arg("--handover").arg(numbers.join(","));
    if headless {
        command.arg("--headless");
    }
    let inherit = move || {
        for &fd in &files {
            // SAFETY: clears a flag of a descriptor of this process; fcntl is async-signal-safe.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes one async-signal-safe call and touches no memory but its own.
    unsafe { command.pre_exec(inherit) };
    command.env(crate::library::ROOT_VARIABLE, root).current_dir(machine.folder()).stderr(errors(machine));
    detach(command, &format!("{:?}", machine.name), &format!("see {}", machine.logs().display()))
}

/// Has a new process power off `machine`, which this one runs, set it back to the point `id` and start it again. What it is now is
/// kept already.
///
/// # Errors
/// The process cannot be made.
#[cfg(feature = "gui")]
pub(super) fn go_back(root: &Path, machine: &Machine, id: &str) -> Result<(), LaunchError> {
    let mut command = Command::new(own_program()?);
    command.args(["timeline", "restore", &machine.id, id, "--without-checkpoint", "--power-off", "--start"]);
    command.env(crate::library::ROOT_VARIABLE, root).current_dir(machine.folder()).stderr(errors(machine));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into)) };
    let started = command.spawn().map(drop);
    started.map_err(|error| LaunchError::new(format!("could not start the process that goes back: {error}")))
}

/// The file for what the process says that nobody reads; none is no reason not to start.
fn errors(machine: &Machine) -> Stdio {
    let _ = std::fs::create_dir_all(machine.logs());
    File::create(machine.logs().join("errors.log")).map_or_else(|_| Stdio::null(), Stdio::from)
}

fn own_program() -> Result<PathBuf, LaunchError> {
    std::env::current_exe().map_err(|error| LaunchError::new(format!("could not find the program itself: {error}")))
}

/// Runs a command that announces itself, in a session of its own.
fn detach(mut command: Command, what: &str, advice: &str) -> Result<u32, LaunchError> {
    let failed = |why: &str| LaunchError::new(format!("could not start {what}: {why}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into)) };
    let mut child = command.spawn().map_err(|error| failed(&error.to_string()))?;
    let output = child.stdout.take().ok_or_else(|| failed("it has no output"))?;
    let mut line = String::new();
    let read = BufReader::new(output.take(MAX_LINE as u64)).read_line(&mut line);
    // An ended child stays a zombie until somebody asks.
    let reaper = thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
    match serde_json::from_str(&line) {
        Ok(Announcement::Started { pid, .. }) => Ok(pid),
        Ok(Announcement::Error { message, code }) => Err(LaunchError { message, code }),
        Err(_) => {
            let why = match (read, reaper.map(thread::JoinHandle::join)) {
                (Ok(0), Ok(Ok(Ok(status)))) => format!("its process ended ({status})"),
                _ => "its process did not say whether it started".into(),
            };
            Err(failed(&format!("{why}; {advice}")))
        }
    }
}
