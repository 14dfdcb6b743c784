//! Log pages (NVM Express base 1.4 §5.14.1) and the asynchronous events that lead to them (§5.2).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::doorbells::BadWrite;
use super::identify::{ERROR_LOG_ENTRIES, FIRMWARE, NAMESPACE, TEMPERATURE};
use super::status::Status;

/// Log identifiers.
pub(super) mod id {
    pub const ERRORS: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const EFFECTS: u8 = 0x05;
}

/// Bytes of an error's entry.
const ERROR: usize = 64;

/// Something a driver is to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A doorbell was written wrongly.
    Doorbell(BadWrite),
    /// The temperature passed a limit.
    Temperature,
}

impl Event {
    /// Dword 0 of the completion: type, information, and the log that tells more.
    pub fn answer(self) -> u32 {
        match self {
            Event::Doorbell(what) => (what as u32) << 8 | u32::from(id::ERRORS) << 16,
            Event::Temperature => 1 | 1 << 8 | u32::from(id::SMART) << 16,
        }
    }

    fn kind(self) -> usize {
        (self.answer() & 7) as usize
    }

    fn from_answer(answer: u32) -> Option<Event> {
        let known = [Event::Doorbell(BadWrite::Register), Event::Doorbell(BadWrite::Value), Event::Temperature];
        known.into_iter().find(|event| event.answer() == answer)
    }
}

/// An error worth remembering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Error {
    count: u64,
    /// Submission queue and command; ones where it is no command's.
    queue: u16,
    command: u16,
    /// As in a completion, without the phase.
    status: u16,
    /// The first block.
    block: u64,
}

/// The logs' contents and the events that wait.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Sectors and commands, of reads and of writes.
    sectors: [u64; 2],
    commands: [u64; 2],
    media_errors: u64,
    error_count: u64,
    errors: VecDeque<Error>,
    events: Vec<Event>,
    /// Event types that are silent until their log was read.
    masked: [bool; 2],
}

/// What a checkpoint keeps of the logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogState {
    sectors: [u64; 2],
    commands: [u64; 2],
    media_errors: u64,
    error_count: u64,
    errors: Vec<Error>,
    events: Vec<u32>,
    masked: [bool; 2],
}

impl Log {
    /// Counts a transfer that went well.
    pub fn count(&mut self, writes: bool, sectors: u64) {
        let side = usize::from(writes);
        self.sectors[side] = self.sectors[side].saturating_add(sectors);
        self.commands[side] = self.commands[side].saturating_add(1);
    }

    /// Remembers that the host failed a command.
    pub fn media_error(&mut self, queue: u16, command: u16, status: Status, block: u64) {
        self.media_errors += 1;
        self.remember(queue, command, status.0, block);
    }

    fn remember(&mut self, queue: u16, command: u16, status: u16, block: u64) {
        self.error_count += 1;
        self.errors.truncate(ERROR_LOG_ENTRIES - 1);
        self.errors.push_front(Error { count: self.error_count, queue, command, status, block });
    }

    /// Notes an event; a second one of its kind says nothing new.
    pub fn notice(&mut self, event: Event) {
        if let Event::Doorbell(_) = event {
            self.remember(0xffff, 0xffff, 0, 0);
        }
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    /// Whether there is an event to report.
    pub fn has_event(&self) -> bool {
        self.events.iter().any(|event| !self.masked[event.kind()])
    }

    /// The next event to report; its type is silent from now on.
    pub fn take_event(&mut self) -> Option<Event> {
        let next = self.events.iter().position(|event| !self.masked[event.kind()])?;
        let event = self.events.remove(next);
        self.masked[event.kind()] = true;
        Some(event)
    }

    /// A log was read, and its events may be reported again.
    pub fn was_read(&mut self, log: u8) {
        match log {
            id::ERRORS => self.masked[0] = false,
            id::SMART => self.masked[1] = false,
            _ => {}
        }
    }

    /// After a controller reset: no event waits.
    pub fn forget_events(&mut self) {
        self.events.clear();
        self.masked = [false; 2];
    }

    /// A log's bytes; `None`: there is no such log.
    pub fn page(&self, log: u8, critical_warning: u8, effects: &[(usize, u32)]) -> Option<Vec<u8>> {
        Some(match log {
            id::ERRORS => self.error_page(),
            id::SMART => self.smart_page(critical_warning),
            id::FIRMWARE => {
                let mut bytes = vec![0; 512];
                // Slot 1 is active.
                bytes[0] = 1;
                bytes[8..16].copy_from_slice(FIRMWARE);
                bytes
            }
            // None ever changes.
            id::CHANGED_NAMESPACES => vec![0; 4096],
            id::EFFECTS => {
                let mut bytes = vec![0; 4096];
                for &(at, effect) in effects {
                    bytes[4 * at..4 * at + 4].copy_from_slice(&effect.to_le_bytes());
                }
                bytes
            }
            _ => return None,
        })
    }

    fn error_page(&self) -> Vec<u8> {
        let mut bytes = vec![0; ERROR * ERROR_LOG_ENTRIES];
        for (entry, error) in bytes.chunks_exact_mut(ERROR).zip(&self.errors) {
            entry[..8].copy_from_slice(&error.count.to_le_bytes());
            entry[8..10].copy_from_slice(&error.queue.to_le_bytes());
            entry[10..12].copy_from_slice(&error.command.to_le_bytes());
            entry[12..14].copy_from_slice(&(error.status << 1).to_le_bytes());
            // No parameter of a command is to blame.
            entry[14..16].copy_from_slice(&[0xff; 2]);
            entry[16..24].copy_from_slice(&error.block.to_le_bytes());
            entry[24..28].copy_from_slice(&NAMESPACE.to_le_bytes());
        }
        bytes
    }

    fn smart_page(&self, critical_warning: u8) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[0] = critical_warning;
        bytes[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
        // All spare blocks are there; a tenth of them would be too few.
        bytes[3] = 100;
        bytes[4] = 10;
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        for side in 0..2 {
            // In thousands, begun ones counted.
            put(32 + 16 * side, self.sectors[side].div_ceil(1000));
            put(64 + 16 * side, self.commands[side]);
        }
        // Power cycles.
        put(112, 1);
        put(160, self.media_errors);
        put(176, self.error_count);
        bytes
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> LogState {
        let Log { sectors, commands, media_errors, error_count, errors, events, masked } = self;
        LogState {
            sectors: *sectors,
            commands: *commands,
            media_errors: *media_errors,
            error_count: *error_count,
            errors: errors.iter().copied().collect(),
            events: events.iter().map(|event| event.answer()).collect(),
            masked: *masked,
        }
    }

    /// The logs of a state, if they can be a controller's.
    pub fn restore(state: &LogState) -> Option<Log> {
        let LogState { sectors, commands, media_errors, error_count, errors, events, masked } = state;
        let events = events.iter().map(|&answer| Event::from_answer(answer)).collect::<Option<Vec<_>>>()?;
        (errors.len() <= ERROR_LOG_ENTRIES && events.len() <= 3).then(|| Log {
            sectors: *sectors,
            commands: *commands,
            media_errors: *media_errors,
            error_count: *error_count,
            errors: errors.iter().copied().collect(),
            events,
            masked: *masked,
        })
    }
}
