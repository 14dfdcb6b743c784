//! The host's side of a TPM 2.0: what a device needs of one, and [`Swtpm`], a TPM in a process of its own.
//!
//! A TPM is slow (a key takes seconds) and may be gone at any time, so everything here waits with a limit and can be
//! interrupted; a device calls it from a thread that nobody else needs.

mod swtpm;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::base::Bytes;
pub use swtpm::Swtpm;

/// The longest command and the longest response, bytes: what a CRB's data buffer holds (PTP 1.05 §6.5.3.2, from 0x80 to
/// the end of the page).
pub const MAX_MESSAGE: usize = 0x1000 - 0x80;

/// A TPM 2.0 that carries out commands, one after another.
pub trait TpmBackend: Send {
    /// What reaches it from other threads while one of the other functions is at work.
    fn interrupt(&self) -> Arc<Interrupt>;

    /// Cuts its power and gives it back: sessions, loaded keys and PCRs are gone; what it keeps for good is not.
    ///
    /// # Errors
    /// It is gone, does not answer, or can't read what it has kept.
    fn power_on(&mut self) -> Result<(), TpmError>;

    /// Carries out one command, sent from `locality` (0 to 4), and returns the response. `command` is a whole one: as
    /// long as its header says.
    ///
    /// # Errors
    /// It is gone, or did not answer within [`Limits::command`], or its interrupt said to end.
    fn execute(&mut self, locality: u8, command: &[u8]) -> Result<Vec<u8>, TpmError>;

    /// All it knows, for a checkpoint. Changes nothing.
    ///
    /// # Errors
    /// As for the others.
    fn save(&mut self) -> Result<TpmState, TpmError>;

    /// Makes it what it was when that was saved, and gives it power.
    ///
    /// # Errors
    /// As for the others; or the state is not one that it can take.
    fn restore(&mut self, state: &TpmState) -> Result<(), TpmError>;
}

/// A TPM's state in pieces that only it understands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmState {
    /// What survives a power cut: seeds, hierarchies, NV indexes.
    pub permanent: Blob,
    /// What does not: PCRs, sessions, loaded keys.
    pub volatile: Blob,
    /// What TPM2_Shutdown(STATE) has put aside.
    pub saved: Blob,
}

/// One piece of a TPM's state; empty if there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// The TPM's own remarks about the bytes (swtpm: bit 0 not encrypted, bit 1 encrypted).
    pub flags: u32,
    /// The piece.
    pub bytes: Bytes,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a TPM command. Making a key takes seconds, on a busy host many.
    pub command: Duration,
    /// For anything else.
    pub control: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { command: Duration::from_secs(300), control: Duration::from_secs(60) }
    }
}

/// Why a TPM failed.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// Its process has ended.
    #[error("swtpm, the process that is the TPM, has ended")]
    Gone,
    /// It does not answer.
    #[error("swtpm, the process that is the TPM, did not answer within {} s when asked to {what}", .limit.as_secs())]
    Silent {
        /// What it was asked.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It will not.
    #[error("swtpm refused to {what} (result {code:#x})")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// Its answer (TPM 1.2 return codes, as swtpm uses them on its control channel).
        code: u32,
    },
    /// Its answer makes no sense.
    #[error("swtpm answered nonsense when asked to {what}")]
    Nonsense {
        /// What it was asked.
        what: &'static str,
    },
    /// It is too old.
    #[error(
        "this swtpm lacks what a virtual machine needs (it has {found:#x} of {needed:#x}); install version 0.7 or later"
    )]
    TooOld {
        /// What it says it can do.
        found: u64,
        /// What is needed.
        needed: u64,
    },
    /// The host failed.
    #[error("could not talk to swtpm")]
    Host(#[source] io::Error),
    /// It failed before; what its channels say has no meaning any more.
    #[error("swtpm, the process that is the TPM, failed earlier; start the virtual machine again to have a TPM")]
    Broken,
    /// [`Interrupt::end`] was called.
    #[error("the virtual machine ends")]
    Ended,
}

/// Reaches a TPM that is at work, from another thread.
pub struct Interrupt {
    bell: EventFd,
    cancel: AtomicBool,
    end: AtomicBool,
}

impl Interrupt {
    /// One that asks nothing yet.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Interrupt> {
        Ok(Interrupt { bell: EventFd::new(EFD_NONBLOCK)?, cancel: AtomicBool::new(false), end: AtomicBool::new(false) })
    }

    /// Asks for the present command's end. The TPM may have done it all the same.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::SeqCst);
        let _ = self.bell.write(1);
    }

    /// Takes back a [`Interrupt::cancel`] that came too late.
    pub fn forget_cancel(&self) {
        self.cancel.store(false, Ordering::SeqCst);
    }

    /// Ends what the TPM is asked now, and all that it is asked later, at once and without an answer.
    pub fn end(&self) {
        self.end.store(true, Ordering::SeqCst);
        let _ = self.bell.write(1);
    }

    /// Whether [`Interrupt::cancel`] was called; resets it.
    pub fn take_cancel(&self) -> bool {
        self.cancel.swap(false, Ordering::SeqCst)
    }

    /// Whether [`Interrupt::end`] was called.
    pub fn is_ended(&self) -> bool {
        self.end.load(Ordering::SeqCst)
    }

    /// The descriptor that is readable when something was asked.
    fn bell(&self) -> &EventFd {
        &self.bell
    }
}
