//! No network: what a card sends is lost, and nothing comes in.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{HEADER, NetPort, Offloads};
use crate::base::VolatileSlice;

/// The payload of a frame where there is no network to say: Ethernet's, bytes.
const MTU: u16 = 1500;

/// See the module.
pub struct Unplugged {
    /// Never signalled.
    silence: EventFd,
}

impl Unplugged {
    /// One. Fails when the host is out of file descriptors.
    pub fn new() -> io::Result<Unplugged> {
        Ok(Unplugged { silence: EventFd::new(EFD_NONBLOCK)? })
    }
}

impl NetPort for Unplugged {
    /// All: a guest that goes on without the network that it had may use what that could.
    fn supports(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, uso: true }
    }

    fn accept(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn mtu(&self) -> Option<u16> {
        Some(MTU)
    }

    fn is_plugged(&self) -> bool {
        false
    }

    fn receive(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn send(&mut self, _: &[u8; HEADER], _: &[VolatileSlice<'_>]) -> io::Result<bool> {
        Ok(true)
    }

    fn readable(&self) -> RawFd {
        self.silence.as_raw_fd()
    }

    fn writable(&self) -> RawFd {
        self.silence.as_raw_fd()
    }
}
