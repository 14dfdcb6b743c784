//! What a virtio device is to the framework.

use std::os::fd::RawFd;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::chain::Chain;
use super::queue::Queue;
use crate::base::{GuestMemory, MemoryError, SavedState, StateError};

/// What is the same for all devices of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// virtio device id (virtio 1.2 §5).
    pub id: u16,
    /// A short name, for threads, logs and checkpoints.
    pub name: &'static str,
    /// The thread that runs it.
    pub role: Role,
    /// PCI class, subclass and interface.
    pub class: [u8; 3],
}

impl Info {
    /// A device of this id and name on this thread, of no particular PCI class.
    pub const fn new(id: u16, name: &'static str, role: Role) -> Info {
        Info { id, name, role, class: [0xff, 0, 0] }
    }

    /// With this PCI class, subclass and interface.
    pub const fn class(self, class: [u8; 3]) -> Info {
        Info { class, ..self }
    }
}

/// Which thread runs a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// One thread a disk.
    Disk,
    /// One thread a network card.
    Net,
    /// The graphics thread.
    Gpu,
    /// The thread that all slow devices share.
    Io,
}

/// A guest's breach of the protocol: the device stops until the driver resets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A ring, a table or a buffer is not in RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring or a descriptor chain breaks virtio 1.2 §2.7.
    #[error("{0}")]
    Ring(&'static str),
    /// A request breaks the device's own rules.
    #[error("{0}")]
    Request(&'static str),
}

/// A descriptor that a device waits on beside its queues; edge-triggered (see [`crate::base::Task`]).
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// What [`Device::on_source`] is told.
    pub id: u32,
    /// The descriptor; it stays open as long as the device lives.
    pub fd: RawFd,
}

/// A device's configuration registers as the vCPUs see them, whatever the device's thread is doing.
pub trait ConfigSpace: Send + Sync {
    /// Reads; bytes beyond the end are zero.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes; most devices have nothing writable.
    fn write(&self, _offset: u64, _data: &[u8]) {}
    /// Counts the changes made by the device (virtio 1.2 §4.1.4.3.1).
    fn generation(&self) -> u8 {
        0
    }
    /// The device was reset.
    fn reset(&self) {}
}

/// Configuration registers that only the device changes.
#[derive(Debug, Default)]
pub struct ConfigBytes {
    bytes: RwLock<Vec<u8>>,
    generation: AtomicU32,
}

impl ConfigBytes {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> ConfigBytes {
        ConfigBytes { bytes: RwLock::new(bytes), generation: AtomicU32::new(0) }
    }

    /// Changes them. Tell the driver with [`Io::config_changed`].
    pub fn set(&self, bytes: Vec<u8>) {
        *self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner) = bytes;
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl ConfigSpace for ConfigBytes {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset as usize + i).copied().unwrap_or(0);
        }
    }

    fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire) as u8
    }
}

/// A virtio device. All calls come from one thread at a time; between `reset` or `restore` and `start` nobody else
/// touches it.
pub trait Device: Send + 'static {
    /// What it is.
    const INFO: Info;
    /// What a checkpoint keeps of it.
    type State: SavedState;

    /// Its own feature bits; the framework adds those that concern every device.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each of its queues, powers of two up to [`super::QUEUE_SIZE_MAX`].
    fn queues(&self) -> &[u16];

    /// Its configuration registers.
    fn config(&self) -> std::sync::Arc<dyn ConfigSpace>;

    /// The driver is ready, or the machine goes on: queues may be used. Every queue is processed right after.
    fn start(&mut self, _io: &mut Io<'_>) -> Result<(), Fault> {
        Ok(())
    }

    /// The driver put buffers in a queue. Take what can be used now; the call comes again when there is more.
    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault>;

    /// What it waits on beside its queues. Asked at every start.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// A source became ready. Edge-triggered: drain it, or try again in a later call.
    fn on_source(&mut self, _id: u32, _io: &mut Io<'_>) -> Result<(), Fault> {
        Ok(())
    }

    /// The machine stops: finishes the host I/O that is in flight and completes its chains. Chains it must keep are
    /// put back with [`Io::put_back`].
    fn quiesce(&mut self, _io: &mut Io<'_>) {}

    /// The driver reset it: back to the state after power-on. Chains it still holds are dropped.
    fn reset(&mut self);

    /// Its state; called between `quiesce` and `start`.
    fn save(&self) -> Self::State;

    /// Takes over a state, on a fresh device.
    fn restore(&mut self, state: Self::State) -> Result<(), StateError>;
}

/// What a device can reach while it works for its driver.
pub struct Io<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) queues: &'a mut [Queue],
    pub(super) features: u64,
    pub(super) config_changed: bool,
    pub(super) problems: &'a mut Vec<String>,
    pub(super) stalls: &'a mut Vec<String>,
}

impl Io<'_> {
    /// The next buffer that the driver offers, if there is one.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Fault> {
        match self.queues.get_mut(queue) {
            Some(queue) => queue.pop(self.memory),
            None => Ok(None),
        }
    }

    /// Puts a chain back unfinished: it will be popped again before any other, the last one put back first. A checkpoint
    /// keeps it.
    pub fn put_back(&mut self, queue: usize, chain: Chain) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.put_back(chain);
        }
    }

    /// How many buffers the driver offers that were not popped yet.
    pub fn waiting(&self, queue: usize) -> Result<u16, Fault> {
        self.queues.get(queue).map_or(Ok(0), |queue| queue.waiting(self.memory))
    }

    /// Makes the completions so far visible to the driver now, rather than when the call returns: for long work.
    pub fn flush(&mut self, queue: usize) -> Result<(), Fault> {
        match self.queues.get_mut(queue) {
            Some(queue) => queue.flush(self.memory),
            None => Ok(()),
        }
    }

    /// Guest RAM, for requests that name addresses themselves (virtio-gpu backing).
    pub fn memory(&self) -> &GuestMemory {
        self.memory
    }

    /// The features the driver accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Tells the driver that the configuration registers changed.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }

    /// Tells the person that the host failed: what and why, a sentence.
    pub fn problem(&mut self, message: String) {
        self.problems.push(message);
    }

    /// The device can't go on until the host is mended: why, a sentence. The machine is paused so that nothing is lost;
    /// [`Device::start`] comes when it goes on. Chains that are unfinished are put back before.
    pub fn stall(&mut self, message: String) {
        self.stalls.push(message);
    }
}
