//! Submission and completion queues in guest memory (NVM Express base 1.4 §4.1, §4.2, §4.6).

use serde::{Deserialize, Serialize};

use super::status::Status;
use crate::base::{GuestAddress, GuestMemory, MemoryError};

/// Bytes of a command.
pub(super) const COMMAND: u64 = 64;
/// Bytes of a completion.
pub(super) const COMPLETION: u64 = 16;

/// A command as the driver wrote it (§4.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct Command([u32; 16]);

impl Command {
    fn read(memory: &GuestMemory, address: u64) -> Result<Command, MemoryError> {
        let words: [u32; 16] = memory.read_obj(GuestAddress(address))?;
        Ok(Command(words.map(u32::from_le)))
    }

    /// All dwords.
    pub fn words(&self) -> [u32; 16] {
        self.0
    }

    /// The command of these dwords.
    pub fn from_words(words: [u32; 16]) -> Command {
        Command(words)
    }

    /// Command dword `n`.
    pub fn dword(&self, n: usize) -> u32 {
        self.0.get(n).copied().unwrap_or(0)
    }

    /// Two dwords from `n` on.
    pub fn qword(&self, n: usize) -> u64 {
        u64::from(self.dword(n)) | u64::from(self.dword(n + 1)) << 32
    }

    /// What to do.
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// The driver's name for it.
    pub fn id(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// It is half of a fused operation.
    pub fn is_fused(&self) -> bool {
        self.0[0] >> 8 & 3 != 0
    }

    /// How its data is described: 0 by PRPs, 1 by an SGL.
    pub fn data_kind(&self) -> u32 {
        self.0[0] >> 14 & 3
    }

    /// The namespace it is for.
    pub fn namespace(&self) -> u32 {
        self.0[1]
    }

    /// PRP entries 1 and 2.
    pub fn prps(&self) -> [u64; 2] {
        [self.qword(6), self.qword(8)]
    }

    /// SGL descriptor 1.
    pub fn sgl(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(&self.0[6..10]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A submission queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Submission {
    /// Guest address.
    pub base: u64,
    /// Entries.
    pub entries: u32,
    /// The next command to take.
    pub head: u32,
    /// Where its commands complete.
    pub completion: u16,
    /// Commands taken and not completed.
    pub in_flight: u32,
    /// The command that deletes it waits for those in flight.
    pub deleted_by: Option<u16>,
}

/// What a checkpoint keeps of a submission queue: nothing is in flight then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SubmissionState {
    base: u64,
    entries: u32,
    head: u32,
    pub(super) tail: u32,
    completion: u16,
}

impl Submission {
    /// An empty queue.
    pub fn new(base: u64, entries: u32, completion: u16) -> Submission {
        Submission { base, entries, head: 0, completion, in_flight: 0, deleted_by: None }
    }

    /// Takes the next command.
    pub fn take(&mut self, memory: &GuestMemory) -> Result<Command, MemoryError> {
        let command = Command::read(memory, self.base + u64::from(self.head) * COMMAND)?;
        self.head = (self.head + 1) % self.entries;
        self.in_flight += 1;
        Ok(command)
    }

    /// What a checkpoint keeps.
    pub fn save(&self, tail: u32) -> SubmissionState {
        let Submission { base, entries, head, completion, in_flight: _, deleted_by: _ } = *self;
        SubmissionState { base, entries, head, tail, completion }
    }

    /// The queue of a state, if it can be one.
    pub fn restore(state: &SubmissionState, memory: &GuestMemory) -> Option<Submission> {
        let SubmissionState { base, entries, head, tail, completion } = *state;
        let fits = fits(memory, base, entries, COMMAND) && head < entries && tail < entries;
        fits.then_some(Submission { base, entries, head, completion, in_flight: 0, deleted_by: None })
    }
}

/// A completion queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Completion {
    /// Guest address.
    pub base: u64,
    /// Entries.
    pub entries: u32,
    /// The next entry to write.
    pub tail: u32,
    /// What marks an entry of this round as new.
    pub phase: bool,
    /// The interrupt vector, if it interrupts.
    pub vector: Option<u16>,
    /// Room that is promised to commands in flight.
    pub promised: u32,
    /// The driver is to be told of new entries.
    pub news: bool,
}

/// What a checkpoint keeps of a completion queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CompletionState {
    base: u64,
    entries: u32,
    pub(super) head: u32,
    tail: u32,
    phase: bool,
    pub(super) vector: Option<u16>,
}

/// A completion's contents.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Dword 0: what the command answers.
    pub answer: u32,
    /// The submission queue's head now.
    pub head: u32,
    /// Its number.
    pub queue: u16,
    /// The driver's name for the command.
    pub id: u16,
    /// How it ended.
    pub status: Status,
}

impl Completion {
    /// An empty queue.
    pub fn new(base: u64, entries: u32, vector: Option<u16>) -> Completion {
        Completion { base, entries, tail: 0, phase: true, vector, promised: 0, news: false }
    }

    /// Entries that are free and promised to nobody, the driver's head being where it is.
    pub fn room(&self, head: u32) -> u32 {
        let used = (self.tail + self.entries - head.min(self.entries - 1)) % self.entries;
        (self.entries - 1).saturating_sub(used).saturating_sub(self.promised)
    }

    /// Writes an entry, its phase last.
    pub fn post(&mut self, memory: &GuestMemory, entry: &Entry) -> Result<(), MemoryError> {
        let at = self.base + u64::from(self.tail) * COMPLETION;
        let queues = entry.head & 0xffff | u32::from(entry.queue) << 16;
        let end = u32::from(entry.id) | u32::from(self.phase) << 16 | u32::from(entry.status.0) << 17;
        memory.write_obj(GuestAddress(at), [entry.answer.to_le(), 0, queues.to_le()])?;
        memory.store_u32(GuestAddress(at + 12), end)?;
        self.tail = (self.tail + 1) % self.entries;
        self.phase ^= self.tail == 0;
        self.news |= self.vector.is_some();
        Ok(())
    }

    /// What a checkpoint keeps.
    pub fn save(&self, head: u32) -> CompletionState {
        let Completion { base, entries, tail, phase, vector, promised: _, news: _ } = *self;
        CompletionState { base, entries, head, tail, phase, vector }
    }

    /// The queue of a state, if it can be one.
    pub fn restore(state: &CompletionState, memory: &GuestMemory) -> Option<Completion> {
        let CompletionState { base, entries, head, tail, phase, vector } = *state;
        let fits = fits(memory, base, entries, COMPLETION) && head < entries && tail < entries;
        fits.then_some(Completion { base, entries, tail, phase, vector, promised: 0, news: false })
    }
}

/// Whether a queue of two entries or more is all in RAM.
pub(super) fn fits(memory: &GuestMemory, base: u64, entries: u32, entry: u64) -> bool {
    entries >= 2
        && base.is_multiple_of(4096)
        && memory.check(GuestAddress(base), (u64::from(entries) * entry) as usize).is_ok()
}
