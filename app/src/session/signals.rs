//! Signals as something to wait for: SIGTERM, SIGINT and SIGHUP ask a machine's process to end.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// The signals that ask for an end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The ending signals, taken from their default action (`signalfd(2)`).
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks the signals in this thread, and in all that it starts from now on: call it before any other thread exists.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn take() -> io::Result<Signals> {
        // SAFETY: an all-zero sigset_t is a valid place for sigemptyset; the calls get valid pointers to it, and the
        // descriptor that signalfd returns is ours alone.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in ENDING {
                libc::sigaddset(&mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals { file: File::from_raw_fd(fd) })
        }
    }

    /// Another handle on the same signals.
    ///
    /// # Errors
    /// The host is out of descriptors.
    #[cfg(feature = "gui")]
    pub fn share(&self) -> io::Result<Signals> {
        Ok(Signals { file: self.file.try_clone()? })
    }

    /// Takes one signal, if one came.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        (&self.file).read_exact(&mut info).ok()?;
        let number = info.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
        number.and_then(|number| i32::try_from(number).ok())
    }
}

impl AsFd for Signals {
    /// Readable when a signal came.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
