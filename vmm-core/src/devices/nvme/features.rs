//! Features (NVM Express base 1.4 §5.21.1): what a driver sets, and reads back.

use serde::{Deserialize, Serialize};

use super::identify::{TEMPERATURE, WARNING_TEMPERATURE};
use super::queues::Command;
use super::status::Status;

/// Feature identifiers.
mod id {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER: u8 = 0x02;
    pub const TEMPERATURE: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const COALESCING: u8 = 0x08;
    pub const VECTOR: u8 = 0x09;
    pub const ATOMICITY: u8 = 0x0a;
    pub const EVENTS: u8 = 0x0b;
}

/// In the event configuration: SMART's warning about the temperature.
pub(super) const EVENT_TEMPERATURE: u32 = 1 << 1;
/// All that can be configured of events: the five SMART warnings, namespace and firmware notices.
const EVENT_BITS: u32 = 0x031f;
/// In an answer about what a feature can do: it can be changed.
const CHANGEABLE: u32 = 1 << 2;
/// The same: it is per namespace.
const PER_NAMESPACE: u32 = 1 << 1;

/// The features' values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Features {
    arbitration: u32,
    over_temperature: u16,
    under_temperature: u16,
    recovery: u16,
    write_cache: bool,
    coalescing: u16,
    /// Whether coalescing is off, for each vector.
    vectors: Vec<bool>,
    atomicity: u32,
    events: u32,
    queues_created: bool,
}

/// What a checkpoint keeps of the features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FeaturesState {
    arbitration: u32,
    over_temperature: u16,
    under_temperature: u16,
    recovery: u16,
    write_cache: bool,
    coalescing: u16,
    vectors: Vec<bool>,
    atomicity: u32,
    events: u32,
    queues_created: bool,
}

impl Features {
    /// As after a reset, with so many vectors: one for each queue pair, the admin's included.
    pub fn new(vectors: u16) -> Features {
        Features {
            arbitration: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            recovery: 0,
            write_cache: true,
            coalescing: 0,
            vectors: vec![false; usize::from(vectors)],
            atomicity: 0,
            events: 0,
            queues_created: false,
        }
    }

    /// Writes may stay in a cache until a flush.
    pub fn caches_writes(&self) -> bool {
        self.write_cache
    }

    /// A driver that has created a queue can't ask for their number any more.
    pub fn queue_was_created(&mut self) {
        self.queues_created = true;
    }

    /// SMART's critical warning (§5.14.1.2): of all, only the temperature can be, where a driver sets such limits.
    pub fn critical_warning(&self) -> u8 {
        u8::from(TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature) << 1
    }

    /// Whether the driver wants to hear of the warning.
    pub fn reports_temperature(&self) -> bool {
        self.events & EVENT_TEMPERATURE != 0
    }

    /// Get Features: a value.
    pub fn get(&self, command: &Command, namespace_exists: bool) -> Result<u32, Status> {
        let fresh;
        let feature = command.dword(10) as u8;
        let from = match command.dword(10) >> 8 & 7 {
            0 => self,
            // Nothing is saved: the saved value is the default.
            1 | 2 => {
                fresh = Features::new(self.vectors.len() as u16);
                &fresh
            }
            3 => {
                return match feature {
                    id::ERROR_RECOVERY => Ok(CHANGEABLE | PER_NAMESPACE),
                    id::ARBITRATION..=id::EVENTS if feature != 3 => Ok(CHANGEABLE),
                    _ => Err(Status::INVALID_FIELD),
                };
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(match feature {
            id::ARBITRATION => from.arbitration,
            id::POWER => 0,
            id::TEMPERATURE => match command.dword(11) >> 16 & 0x3f {
                0 => u32::from(from.over_temperature),
                0x10 => u32::from(from.under_temperature),
                // Sensors that do not exist, and reserved selections.
                _ => return Err(Status::INVALID_FIELD),
            },
            id::ERROR_RECOVERY if namespace_exists => u32::from(from.recovery),
            id::ERROR_RECOVERY => return Err(Status::INVALID_NAMESPACE),
            id::WRITE_CACHE => u32::from(from.write_cache),
            id::QUEUES => self.queues(),
            id::COALESCING => u32::from(from.coalescing),
            id::VECTOR => {
                let vector = command.dword(11) & 0xffff;
                let off = from.vectors.get(vector as usize).ok_or(Status::INVALID_FIELD)?;
                vector | u32::from(*off) << 16
            }
            id::ATOMICITY => from.atomicity,
            id::EVENTS => from.events,
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// Queues of each kind that a driver may create, counted from 0 twice.
    fn queues(&self) -> u32 {
        let most = (self.vectors.len() as u32).saturating_sub(2);
        most | most << 16
    }

    /// Set Features: what the completion answers.
    pub fn set(&mut self, command: &Command, namespace_exists: bool) -> Result<u32, Status> {
        let (feature, value) = (command.dword(10) as u8, command.dword(11));
        if command.dword(10) >> 31 != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        match feature {
            id::ARBITRATION => self.arbitration = value & 0xffff_ff07,
            // There is one power state.
            id::POWER if value & 0x1f == 0 => {}
            id::TEMPERATURE => match value >> 16 & 0x3f {
                0 => self.over_temperature = value as u16,
                0x10 => self.under_temperature = value as u16,
                // Sensors that do not exist; the driver may mean all there are.
                0x0f => self.over_temperature = value as u16,
                0x1f => self.under_temperature = value as u16,
                _ => return Err(Status::INVALID_FIELD),
            },
            id::ERROR_RECOVERY if !namespace_exists => return Err(Status::INVALID_NAMESPACE),
            // No error for unwritten blocks (DULBE).
            id::ERROR_RECOVERY if value & 1 << 16 == 0 => self.recovery = value as u16,
            id::WRITE_CACHE => self.write_cache = value & 1 != 0,
            id::QUEUES if self.queues_created => return Err(Status::SEQUENCE),
            id::QUEUES if value & 0xffff == 0xffff || value >> 16 == 0xffff => return Err(Status::INVALID_FIELD),
            id::QUEUES => return Ok(self.queues()),
            id::COALESCING => self.coalescing = value as u16,
            id::VECTOR => {
                let off = self.vectors.get_mut(value as usize & 0xffff).ok_or(Status::INVALID_FIELD)?;
                *off = value & 1 << 16 != 0;
            }
            id::ATOMICITY => self.atomicity = value & 1,
            id::EVENTS => self.events = value & EVENT_BITS,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// Whether a command turns the write cache off.
    pub fn turns_cache_off(&self, command: &Command) -> bool {
        command.dword(10) as u8 == id::WRITE_CACHE && command.dword(11) & 1 == 0 && self.write_cache
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> FeaturesState {
        let Features {
            arbitration,
            over_temperature,
            under_temperature,
            recovery,
            write_cache,
            coalescing,
            ref vectors,
            atomicity,
            events,
            queues_created,
        } = *self;
        FeaturesState {
            arbitration,
            over_temperature,
            under_temperature,
            recovery,
            write_cache,
            coalescing,
            vectors: vectors.clone(),
            atomicity,
            events,
            queues_created,
        }
    }

    /// The features of a state, if they are of a controller with so many vectors.
    pub fn restore(state: &FeaturesState, vectors: u16) -> Option<Features> {
        let FeaturesState {
            arbitration,
            over_temperature,
            under_temperature,
            recovery,
            write_cache,
            coalescing,
            vectors: ref off,
            atomicity,
            events,
            queues_created,
        } = *state;
        (off.len() == usize::from(vectors)).then(|| Features {
            arbitration,
            over_temperature,
            under_temperature,
            recovery,
            write_cache,
            coalescing,
            vectors: off.clone(),
            atomicity,
            events,
            queues_created,
        })
    }
}
