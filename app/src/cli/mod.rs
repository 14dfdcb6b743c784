//! The command line: every verb of the windows, through the same functions.

mod args;
mod disk;
mod output;
mod progress;
mod snapshots;
mod timeline;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use vmm_core::backend::disk::tools::ToolError;
use vmm_core::base::explain;
use vmm_core::vm::BuildError;

use crate::control::ControlError;
use crate::jobs::JobError;
use crate::library::{LibraryError, detect::DetectError};
use crate::session::{LaunchError, RunError};
use args::Cli;

/// How a command ends, for scripts; documented in `orangery --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// The command line is wrong, or asks for a machine that cannot be.
    Usage = 2,
    /// There is no such machine.
    NotFound = 3,
    /// The machine's state does not allow it.
    State = 4,
    /// This computer lacks something.
    Host = 5,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The library, a running machine, or an image.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The machine in this process.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A machine in a process of its own.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A file that is looked at.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// Something else on this computer.
    #[error("could not {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Something in words, with its exit code.
    #[error("{1}")]
    Words(Exit, String),
}

impl From<LibraryError> for CliError {
    fn from(error: LibraryError) -> CliError {
        CliError::Job(error.into())
    }
}

impl CliError {
    fn exit(&self) -> u8 {
        let exit = match self {
            CliError::Job(error) => of_job(error),
            CliError::Run(RunError::Library(error)) => of_library(error),
            CliError::Run(RunError::Build { source: BuildError::Config(_), .. }) => Exit::Usage,
            CliError::Run(RunError::Build { .. } | RunError::Host { .. } | RunError::Window(_)) => Exit::Host,
            CliError::Launch(error) => return error.code,
            CliError::Words(exit, _) => *exit,
            CliError::Run(RunError::Ended(_) | RunError::GoOn { .. }) | CliError::Detect(_) | CliError::Io { .. } => {
                Exit::Failed
            }
        };
        exit as u8
    }
}

fn of_job(error: &JobError) -> Exit {
    match error {
        JobError::Library(error) => of_library(error),
        JobError::Control { source: ControlError::NotRunning | ControlError::Refused(_), .. } => Exit::State,
        JobError::Tool(ToolError::Refused(_)) => Exit::Usage,
        JobError::Control { .. } | JobError::Tool(_) | JobError::NoCheckpoint { .. } | JobError::StillRuns(_) => {
            Exit::Failed
        }
    }
}

fn of_library(error: &LibraryError) -> Exit {
    match error {
        LibraryError::NotFound { .. } | LibraryError::NoSnapshot { .. } => Exit::NotFound,
        LibraryError::Exists(_)
        | LibraryError::Running { .. }
        | LibraryError::Busy { .. }
        | LibraryError::ChangedMeanwhile { .. }
        | LibraryError::NoVariables { .. }
        | LibraryError::OutsideDisk { .. }
        | LibraryError::Suspended { .. }
        | LibraryError::Disk(_)
        | LibraryError::Machine(_)
        | LibraryError::Changed { .. } => Exit::State,
        LibraryError::Name { .. } | LibraryError::Config(_) => Exit::Usage,
        LibraryError::Firmware(_) => Exit::Host,
        LibraryError::Broken { .. }
        | LibraryError::Io { .. }
        | LibraryError::Image(_)
        | LibraryError::Cancelled
        | LibraryError::Checkpoint(_) => Exit::Failed,
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own code for wrong usage is 2, and help is no error.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let json = cli.json;
    match verbs::perform(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (code, mut message) = (error.exit(), explain(&error));
            if matches!(error, CliError::Job(JobError::NoCheckpoint { .. })) {
                message += "; --without-checkpoint does it all the same";
            }
            if json {
                print(&format!("{}\n", json!({ "error": { "code": code, "message": message } })));
            }
            let _ = writeln!(std::io::stderr(), "orangery: {message}");
            ExitCode::from(code)
        }
    }
}

/// Writes to standard output. A reader that went away (`| head`) has read enough.
fn print(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}
