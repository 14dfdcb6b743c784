//! A network that is a test: frames go in and come out by hand.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{HEADER, NetPort, Offloads};
use crate::base::VolatileSlice;

#[derive(Default)]
struct State {
    incoming: VecDeque<Vec<u8>>,
    sent: Vec<(Vec<u8>, Vec<u8>)>,
    accepted: Offloads,
    full: bool,
    broken: bool,
}

/// The card's end.
pub struct FakeNet {
    wire: Wire,
}

/// The test's end.
#[derive(Clone)]
pub struct Wire {
    state: Arc<Mutex<State>>,
    readable: Arc<EventFd>,
    writable: Arc<EventFd>,
}

impl FakeNet {
    /// Both ends.
    pub fn new() -> (FakeNet, Wire) {
        let bell = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let wire = Wire { state: Arc::default(), readable: bell(), writable: bell() };
        (FakeNet { wire: wire.clone() }, wire)
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends frames to the card, each behind its header.
    pub fn send(&self, frames: &[&[u8]]) {
        self.lock().incoming.extend(frames.iter().map(|f| f.to_vec()));
        self.readable.write(1).expect("an eventfd");
    }

    /// What the card sent since the last call: header and frame.
    pub fn take(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut self.lock().sent)
    }

    /// How many frames the card has not fetched.
    pub fn waiting(&self) -> usize {
        self.lock().incoming.len()
    }

    /// Has the card find no room, or room again.
    pub fn fill(&self, full: bool) {
        self.lock().full = full;
        if !full {
            self.writable.write(1).expect("an eventfd");
        }
    }

    /// Has everything fail, as when the interface is gone.
    pub fn cut(&self) {
        self.lock().broken = true;
        self.readable.write(1).expect("an eventfd");
    }

    /// The offloads that the card accepts.
    pub fn accepted(&self) -> Offloads {
        self.lock().accepted
    }
}

impl NetPort for FakeNet {
    fn supports(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, uso: true }
    }

    fn accept(&mut self, offloads: Offloads) -> io::Result<()> {
        self.wire.lock().accepted = offloads;
        Ok(())
    }

    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut state = self.wire.lock();
        if state.broken {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        Ok(state.incoming.pop_front().map(|frame| {
            let len = frame.len().min(buffer.len());
            buffer[..len].copy_from_slice(&frame[..len]);
            len
        }))
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &[VolatileSlice<'_>]) -> io::Result<bool> {
        let mut state = self.wire.lock();
        if state.broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if state.full {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        for slice in frame {
            let at = bytes.len();
            bytes.resize(at + slice.len(), 0);
            slice.copy_to(&mut bytes[at..]);
        }
        state.sent.push((header.to_vec(), bytes));
        Ok(true)
    }

    fn readable(&self) -> RawFd {
        self.wire.readable.as_raw_fd()
    }

    fn writable(&self) -> RawFd {
        self.wire.writable.as_raw_fd()
    }
}
