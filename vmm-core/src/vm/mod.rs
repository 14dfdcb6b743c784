//! The machine and its life. The only doors into this crate for an application are [`Vm`], [`VmHandle`],
//! [`VmCommand`], [`VmEvent`] and the ports of [`crate::backend`].

mod boot_plan;
mod build;
mod capture;
mod control;
mod generation;
mod lifecycle;
mod machine;

use std::path::PathBuf;

pub use capture::{CaptureError, Captured, DiskSwitch};
pub use control::VmHandle;
pub use lifecycle::Lifecycle;

use crate::backend::chardev::CharPort;
use crate::backend::display::DisplaySink;
use crate::backend::input::InputPort;
use crate::backend::tpm::TpmBackend;
use crate::base::StateError;
pub use crate::boot::BootError;
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, VmConfig};
use crate::kvm::{CpuError, CpuSaveError, KvmError};

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
    /// The TPM, which has power, for a machine that has one ([`VmConfig::tpm`]).
    pub tpm: Option<Box<dyn TpmBackend>>,
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
    /// Tells the guest that it is not alone with its past any more: it was restored or copied, and needs new random
    /// numbers. The id is one that nobody had before.
    NewGeneration {
        /// 16 random bytes.
        id: [u8; 16],
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
    Config(Vec<ConfigError>),
    /// /dev/kvm can't be used, or refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A CPU can't be what the checkpoint says.
    #[error("the machine can't go on here")]
    Cpu(#[source] CpuError),
    /// The checkpoint is damaged, or of another machine.
    #[error("the checkpoint can't be used")]
    State(#[from] StateError),
    /// There is nothing to start.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host lacks something, or a file can't be used.
    #[error("{what}")]
    Host {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The monitor itself failed.
    #[error("a defect in the monitor stopped the machine while it was built")]
    Defect,
}

impl From<CpuError> for BuildError {
    fn from(error: CpuError) -> BuildError {
        match error {
            CpuError::Kvm(error) => BuildError::Kvm(error),
            error => BuildError::Cpu(error),
        }
    }
}

impl From<CpuSaveError> for BuildError {
    fn from(error: CpuSaveError) -> BuildError {
        match error {
            CpuSaveError::Kvm(error) => BuildError::Kvm(error),
            CpuSaveError::State(error) => BuildError::State(error),
        }
    }
}

/// A machine whose thread has ended, or a command that its state refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(pub String);

/// What the UEFI firmware calls itself that a machine would start with here; with `secure_boot`, one that enforces Secure
/// Boot. Reads files.
pub fn uefi_firmware(secure_boot: bool) -> Result<String, BootError> {
    Ok(crate::boot::uefi::Uefi::find(secure_boot, crate::kvm::has_smm())?.description)
}

/// A machine in this process.
pub struct Vm;

impl Vm {
    /// Builds the machine and starts it. `events` is called from the machine's control thread.
    pub fn start(
        config: &VmConfig,
        ports: Ports,
        events: impl Fn(VmEvent) + Send + 'static,
    ) -> Result<VmHandle, BuildError> {
        control::start(config, ports, None, events)
    }

    /// Builds the machine that a checkpoint is of, paused: [`VmCommand::Resume`] goes on with it. `config` is the
    /// checkpoint's, with other files for the same disks perhaps.
    pub fn restore(
        config: &VmConfig,
        ports: Ports,
        checkpoint: Checkpoint,
        events: impl Fn(VmEvent) + Send + 'static,
    ) -> Result<VmHandle, BuildError> {
        control::start(config, ports, Some(checkpoint), events)
    }
}
