//! The machine and its life. The only doors into this crate for an application are [`Vm`], [`VmHandle`],
//! [`VmCommand`], [`VmEvent`] and the ports of [`crate::backend`].

mod lifecycle;

use std::path::PathBuf;

pub use lifecycle::Lifecycle;

use crate::backend::chardev::CharPort;
use crate::backend::display::DisplaySink;
use crate::backend::input::InputPort;

/// The host's ends of what a machine talks through, given to it when it is built.
pub struct Ports {
    /// Where the screen goes.
    pub display: Box<dyn DisplaySink>,
    /// Keys.
    pub keyboard: InputPort,
    /// Pointer.
    pub pointer: InputPort,
    /// The device's end of COM1.
    pub serial: CharPort,
    /// The device's end of the virtio console.
    pub console: CharPort,
    /// The device's end of the firmware's debug port (0x402).
    pub debug: CharPort,
}

/// What an application asks of a running machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmCommand {
    /// Presses the ACPI power button: the guest is asked to shut down.
    ShutDown,
    /// Pulls the plug. What the guest has not written is lost.
    PowerOff,
    /// Presses the reset button. What the guest has not written is lost.
    Reset,
    /// Stops the CPUs and devices.
    Pause,
    /// Goes on after [`VmCommand::Pause`].
    Resume,
    /// Puts a medium in a CD-ROM drive, or takes it out (`None`).
    ChangeMedium {
        /// Which drive, from 0.
        drive: usize,
        /// The ISO's file.
        path: Option<PathBuf>,
    },
    /// The console can show this many pixels: offered to the guest as its preferred mode (EDID).
    ResizeDisplay {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// What a machine tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// It changed its state. [`Lifecycle::Stopped`] is the last event.
    State(Lifecycle),
    /// The guest restarted itself.
    GuestReset,
    /// The guest opened a CD-ROM drive: its medium is out.
    Ejected {
        /// Which drive, from 0.
        drive: usize,
    },
    /// Something went wrong that a person should know of.
    Problem(Problem),
}

/// Something that went wrong while a machine ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The part it happened in, like `disk 0` or `net 1`.
    pub source: String,
    /// What failed and why, a sentence.
    pub message: String,
    /// The machine was paused (by the monitor) so that nothing is lost.
    pub paused: bool,
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<crate::config::ConfigError>),
    /// The host lacks something.
    #[error("{what}")]
    Host {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// A machine whose thread has ended, or a command that its state refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(pub String);

/// A machine in this process.
pub struct Vm;

impl Vm {
    /// Builds the machine and starts it. `events` is called from the machine's control thread.
    pub fn start(
        config: &crate::config::VmConfig,
        ports: Ports,
        events: impl Fn(VmEvent) + Send + 'static,
    ) -> Result<VmHandle, BuildError> {
        let _ = (ports, events);
        config.validate().map_err(BuildError::Config)?;
        Err(BuildError::Host { what: "not built yet".into(), source: std::io::ErrorKind::Unsupported.into() })
    }
}

/// Commands a machine; clones command the same one.
#[derive(Clone)]
pub struct VmHandle {}

impl VmHandle {
    /// Asks the machine for something, and waits until it is done or refused (never long).
    pub fn send(&self, command: VmCommand) -> Result<(), CommandError> {
        Err(CommandError(format!("{command:?}: not built yet")))
    }

    /// What the machine is doing.
    pub fn state(&self) -> Lifecycle {
        Lifecycle::Created
    }

    /// Waits until the machine has stopped and all its threads have ended.
    pub fn wait(&self) {}
}
