//! A disk in memory, for tests: its requests complete at once or when told to, and fail on demand.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Completion, Disk, DiskError, Geometry, Request, SECTOR};

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    held: VecDeque<(u64, Request)>,
    hold: bool,
    fail: Option<fn() -> DiskError>,
    flushes: usize,
    durable_writes: usize,
    done: VecDeque<Completion>,
}

/// The disk.
pub struct MemoryDisk {
    geometry: Geometry,
    state: Arc<Mutex<State>>,
    event: EventFd,
}

/// A test's hand on a [`MemoryDisk`].
#[derive(Clone)]
pub struct Control {
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDisk {
    /// A disk with these bytes, a multiple of [`SECTOR`].
    pub fn new(bytes: Vec<u8>, readonly: bool) -> (MemoryDisk, Control) {
        assert!(bytes.len().is_multiple_of(SECTOR as usize));
        let geometry = Geometry { size: bytes.len() as u64, readonly, physical_block: 4096, discard_granularity: 4096 };
        let state = Arc::new(Mutex::new(State { bytes, ..State::default() }));
        let event = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        (MemoryDisk { geometry, state: state.clone(), event }, Control { state })
    }
}

impl Control {
    /// What is on the disk.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.state).bytes.clone()
    }

    /// Has requests wait (until a drain, or until this is called with false and the disk is kicked), or not.
    pub fn hold(&self, hold: bool) {
        lock(&self.state).hold = hold;
    }

    /// How many requests wait.
    pub fn held(&self) -> usize {
        lock(&self.state).held.len()
    }

    /// Has all requests fail with this, or none.
    pub fn fail(&self, error: Option<fn() -> DiskError>) {
        lock(&self.state).fail = error;
    }

    /// How many flushes, and how many durable writes there were.
    pub fn flushes(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.flushes, state.durable_writes)
    }
}

impl State {
    fn perform(&mut self, readonly: bool, request: Request) -> Result<(), DiskError> {
        if let Some(error) = self.fail {
            return Err(error());
        }
        let size = self.bytes.len() as u64;
        let check = |offset: u64, len: u64, writes: bool| match offset.checked_add(len) {
            _ if writes && readonly => Err(DiskError::ReadOnly),
            Some(end) if end <= size && (offset | len).is_multiple_of(SECTOR) => Ok(offset as usize..end as usize),
            _ => Err(DiskError::OutOfRange),
        };
        match request {
            Request::Read { offset, mut buffers } => {
                let range = check(offset, buffers.len(), false)?;
                buffers.copy_from(&self.bytes[range]);
            }
            Request::Write { offset, buffers, durable } => {
                let range = check(offset, buffers.len(), true)?;
                buffers.copy_to(&mut self.bytes[range]);
                self.durable_writes += usize::from(durable);
            }
            Request::Flush => self.flushes += 1,
            Request::Discard { offset, len } => {
                // Anything may be read afterwards: make it something that shows.
                let range = check(offset, len, true)?;
                self.bytes[range].fill(0xdd);
            }
            Request::WriteZeroes { offset, len, unmap: _, durable } => {
                let range = check(offset, len, true)?;
                self.bytes[range].fill(0);
                self.durable_writes += usize::from(durable);
            }
        }
        Ok(())
    }

    fn perform_all(&mut self, readonly: bool, event: &EventFd) {
        while let Some((token, request)) = self.held.pop_front() {
            let result = self.perform(readonly, request);
            self.done.push_back(Completion { token, result });
            let _ = event.write(1);
        }
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, token: u64, request: Request) {
        lock(&self.state).held.push_back((token, request));
    }

    fn kick(&mut self) {
        let mut state = lock(&self.state);
        if !state.hold {
            state.perform_all(self.geometry.readonly, &self.event);
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        self.kick();
        lock(&self.state).done.pop_front()
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn drain(&mut self) {
        lock(&self.state).perform_all(self.geometry.readonly, &self.event);
    }

    fn settle(&mut self) -> Result<(), DiskError> {
        self.drain();
        Ok(())
    }
}
