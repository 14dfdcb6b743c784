//! The doorbell registers (NVM Express base 1.4 §3.1.24) as vCPUs write them, and what of the queues a vCPU must know
//! to write them without waiting for the controller's thread.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// An error that a doorbell write can be; its number is that of the asynchronous event (§5.2, figure 147).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadWrite {
    /// There is no such queue.
    Register = 0,
    /// The queue has no such entry.
    Value = 1,
}

/// What a doorbell write makes the vCPU do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rung {
    /// The controller's thread has something to do.
    pub ring: bool,
    /// Completions were taken: a pin may have to go down.
    pub line: bool,
}

#[derive(Default)]
struct Doorbell {
    value: AtomicU32,
    /// Entries of its queue; 0: there is none.
    entries: AtomicU32,
}

/// No completion queue here asks for interrupts.
const SILENT: u32 = u32::MAX;

/// All doorbells of a controller.
pub(super) struct Doorbells {
    /// Submission tail, completion head, by turns.
    bells: Vec<Doorbell>,
    /// Tails of the completion queues with interrupts, as far as the driver was told.
    posted: Vec<AtomicU32>,
    /// The thread waits for room in a completion queue.
    waits_for_room: AtomicBool,
    /// Kinds of wrong writes since they were last taken, a bit each.
    wrong: AtomicU8,
}

/// Which of a queue pair's doorbells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Submission queue tail.
    Submission = 0,
    /// Completion queue head.
    Completion = 1,
}

impl Doorbells {
    /// For so many queue pairs, the admin's included.
    pub fn new(pairs: u16) -> Doorbells {
        Doorbells {
            bells: (0..2 * pairs).map(|_| Doorbell::default()).collect(),
            posted: (0..pairs).map(|_| AtomicU32::new(SILENT)).collect(),
            waits_for_room: AtomicBool::new(false),
            wrong: AtomicU8::new(0),
        }
    }

    fn bell(&self, queue: u16, side: Side) -> Option<&Doorbell> {
        self.bells.get(2 * usize::from(queue) + side as usize)
    }

    /// A vCPU writes doorbell number `index`.
    pub fn write(&self, index: u64, value: u32) -> Rung {
        let entries = self.bells.get(index as usize).map_or(0, |bell| bell.entries.load(Ordering::Acquire));
        let Some(bell) = self.bells.get(index as usize).filter(|_| value < entries) else {
            self.complain(if entries == 0 { BadWrite::Register } else { BadWrite::Value });
            return Rung { ring: true, line: false };
        };
        // Sequentially consistent, as is the thread's look at it: either it sees the new head, or we see that it waits.
        bell.value.store(value, Ordering::SeqCst);
        if index.is_multiple_of(2) {
            Rung { ring: true, line: false }
        } else {
            Rung { ring: self.waits_for_room.swap(false, Ordering::SeqCst), line: true }
        }
    }

    /// A queue appears with so many entries.
    pub fn open(&self, queue: u16, side: Side, entries: u32, value: u32) {
        if let Some(bell) = self.bell(queue, side) {
            bell.value.store(value, Ordering::SeqCst);
            bell.entries.store(entries, Ordering::Release);
        }
    }

    /// A queue is gone.
    pub fn close(&self, queue: u16, side: Side) {
        if let Some(bell) = self.bell(queue, side) {
            bell.entries.store(0, Ordering::Release);
            bell.value.store(0, Ordering::SeqCst);
        }
        if side == Side::Completion
            && let Some(posted) = self.posted.get(usize::from(queue))
        {
            posted.store(SILENT, Ordering::SeqCst);
        }
    }

    /// The value last written.
    pub fn value(&self, queue: u16, side: Side) -> u32 {
        self.bell(queue, side).map_or(0, |bell| bell.value.load(Ordering::SeqCst))
    }

    /// The driver may be told of completions up to `tail`.
    pub fn post(&self, queue: u16, tail: u32) {
        if let Some(posted) = self.posted.get(usize::from(queue)) {
            posted.store(tail, Ordering::SeqCst);
        }
    }

    /// Whether any completion is there that the driver was told of and has not taken.
    pub fn pending(&self) -> bool {
        (0u16..).zip(&self.posted).any(|(queue, posted)| {
            let tail = posted.load(Ordering::SeqCst);
            tail != SILENT && tail != self.value(queue, Side::Completion)
        })
    }

    /// The thread will wait for room; it must look once more after this.
    pub fn wait_for_room(&self) {
        self.waits_for_room.store(true, Ordering::SeqCst);
    }

    /// Notes a wrong write.
    pub fn complain(&self, what: BadWrite) {
        self.wrong.fetch_or(1 << what as u8, Ordering::AcqRel);
    }

    /// The wrong writes since the last call.
    pub fn take_wrong(&self) -> impl Iterator<Item = BadWrite> {
        let wrong = self.wrong.swap(0, Ordering::AcqRel);
        [BadWrite::Register, BadWrite::Value].into_iter().filter(move |&what| wrong & 1 << what as u8 != 0)
    }

    /// All queues are gone.
    pub fn reset(&self) {
        for queue in 0..self.posted.len() as u16 {
            self.close(queue, Side::Submission);
            self.close(queue, Side::Completion);
        }
        self.waits_for_room.store(false, Ordering::SeqCst);
        self.wrong.store(0, Ordering::Release);
    }
}
