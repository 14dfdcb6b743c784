//! The registers of all localities (PTP 1.05 §6.5.3.2) and what a write makes the device do. Nothing here waits or knows
//! the TPM.

use serde::{Deserialize, Serialize};

use crate::backend::tpm::MAX_MESSAGE;

/// Localities 0 to 4.
pub const LOCALITIES: u8 = 5;
/// Bytes of a locality's page.
pub const PAGE: u64 = 0x1000;
/// Only the processor itself sends from this one, in a dynamic launch, which a virtual machine has not.
const HARDWARE_LOCALITY: u8 = 4;

/// Offsets in a locality's page.
mod reg {
    pub const LOC_STATE: u64 = 0x00;
    pub const LOC_CTRL: u64 = 0x08;
    pub const LOC_STS: u64 = 0x0c;
    pub const INTF_ID: u64 = 0x30;
    pub const INTF_ID_HIGH: u64 = 0x34;
    pub const CTRL_EXT: u64 = 0x38;
    pub const CTRL_EXT_HIGH: u64 = 0x3c;
    pub const CTRL_REQ: u64 = 0x40;
    pub const CTRL_STS: u64 = 0x44;
    pub const CTRL_CANCEL: u64 = 0x48;
    pub const CTRL_START: u64 = 0x4c;
    pub const INT_ENABLE: u64 = 0x50;
    pub const INT_STS: u64 = 0x54;
    pub const CMD_SIZE: u64 = 0x58;
    pub const CMD_ADDR: u64 = 0x5c;
    pub const CMD_ADDR_HIGH: u64 = 0x60;
    pub const RSP_SIZE: u64 = 0x64;
    pub const RSP_ADDR: u64 = 0x68;
    pub const RSP_ADDR_HIGH: u64 = 0x6c;
    pub const DATA_BUFFER: u64 = 0x80;
}

mod loc_state {
    /// No dynamic launch has happened: as the bit of the same name of the FIFO interface, 1 from power-on.
    pub const ESTABLISHED: u32 = 1;
    pub const ASSIGNED: u32 = 1 << 1;
    pub const ACTIVE_SHIFT: u32 = 2;
    pub const VALID: u32 = 1 << 7;
}

mod loc_ctrl {
    pub const REQUEST_ACCESS: u32 = 1;
    pub const RELINQUISH: u32 = 1 << 1;
    pub const SEIZE: u32 = 1 << 2;
    // Bit 3 resets what is never set here.
}

mod loc_sts {
    pub const GRANTED: u32 = 1;
    pub const BEEN_SEIZED: u32 = 1 << 1;
}

mod ctrl_req {
    pub const CMD_READY: u32 = 1;
    pub const GO_IDLE: u32 = 1 << 1;
}

mod ctrl_sts {
    pub const IDLE: u32 = 1 << 1;
}

/// A CRB (1) of version 1, five localities, idle bypass (a command may be written without asking for Ready before, as
/// SeaBIOS does), transfers of up to 64 bytes, no FIFO, and nothing that could be selected.
const INTF_ID: u32 = 1 | 1 << 4 | 1 << 8 | 1 << 9 | 3 << 11 | 1 << 14 | 1 << 17 | 1 << 19;
/// Vendor and device, as the project's virtio functions name their vendor.
const INTF_ID_HIGH: u32 = 0x1af4 | 0x0001 << 16;

/// Response codes that the device gives itself (TPM 2.0 part 2 §6.6.3).
pub mod rc {
    /// TPM_RC_FAILURE: the TPM can't be reached.
    pub const FAILURE: u32 = 0x101;
    /// TPM_RC_COMMAND_SIZE: the header's size is not one that a command can have here.
    pub const COMMAND_SIZE: u32 = 0x142;
    /// TPM_RC_CANCELED.
    pub const CANCELED: u32 = 0x909;
}

/// A command's header: tag, size, code.
const HEADER: usize = 10;

/// What the buffer is good for (PTP 1.05 §6.5.3.3, the states of the interface).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It waits to be woken: by a request, or by a command's first byte.
    Idle,
    /// It takes a command.
    Ready,
    /// The TPM works.
    Executing,
    /// It holds a response.
    Complete,
}

/// What a write makes the device do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The command in the buffer goes to the TPM.
    Start {
        /// Who sent it.
        locality: u8,
    },
    /// The TPM may give up on the present command, and then responds.
    Cancel,
    /// Nobody wants the present command's response.
    GiveUp,
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// Which locality has the TPM.
    pub locality: Option<u8>,
    /// A bit for each locality that waits for it.
    pub requests: u8,
    /// A bit for each locality that it was taken from.
    pub seized: u8,
    /// See [`Phase`].
    pub phase: Phase,
    /// CTRL_CANCEL.
    pub cancel: bool,
    /// Command or response: [`MAX_MESSAGE`] bytes.
    pub buffer: Vec<u8>,
}

impl Registers {
    /// As they are after power-on.
    pub fn power_on() -> Registers {
        Registers {
            locality: None,
            requests: 0,
            seized: 0,
            phase: Phase::Idle,
            cancel: false,
            buffer: vec![0; MAX_MESSAGE],
        }
    }

    /// What is wrong with these, if no device could have them at rest.
    pub fn check(&self) -> Result<(), &'static str> {
        let mask = (1u8 << LOCALITIES) - 1;
        if self.buffer.len() != MAX_MESSAGE {
            return Err("its buffer has another size");
        }
        if self.locality.is_some_and(|l| l >= HARDWARE_LOCALITY) || (self.requests | self.seized) & !mask != 0 {
            return Err("it names a locality that there is none of");
        }
        if self.phase == Phase::Executing || (self.locality.is_none() && self.phase != Phase::Idle) {
            return Err("it can't be at work");
        }
        Ok(())
    }

    /// The command in the buffer, if its header gives a length that fits.
    pub fn command(&self) -> Option<&[u8]> {
        let size = self.buffer.get(2..6)?.first_chunk::<4>().map(|size| u32::from_be_bytes(*size))?;
        self.buffer.get(..usize::try_from(size).ok()?).filter(|command| command.len() >= HEADER)
    }

    /// The present command's response is there.
    pub fn complete(&mut self, response: &[u8]) {
        self.clear();
        for (to, from) in self.buffer.iter_mut().zip(response) {
            *to = *from;
        }
        self.cancel = false;
        self.phase = Phase::Complete;
    }

    fn clear(&mut self) {
        self.buffer.fill(0);
    }

    /// Whether this locality's page leads to the TPM.
    fn has_access(&self, locality: u8) -> bool {
        self.locality == Some(locality)
    }

    /// Reads; `offset` is from locality 0's page on.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let (locality, register) = ((at / PAGE) as u8, at % PAGE);
            *byte = match register.checked_sub(reg::DATA_BUFFER) {
                Some(place) => self.buffer_byte(locality, place),
                None => self.register(locality, register & !3).to_le_bytes()[(register & 3) as usize],
            };
        }
    }

    fn buffer_byte(&self, locality: u8, place: u64) -> u8 {
        let open = self.has_access(locality) && self.phase != Phase::Executing;
        self.buffer.get(place as usize).copied().filter(|_| open).unwrap_or(0xff)
    }

    fn register(&self, locality: u8, register: u64) -> u32 {
        let bit = |set: bool, mask: u32| if set { mask } else { 0 };
        match register {
            reg::LOC_STATE => {
                let active = self.locality.map_or(0, |l| loc_state::ASSIGNED | u32::from(l) << loc_state::ACTIVE_SHIFT);
                loc_state::ESTABLISHED | loc_state::VALID | active
            }
            reg::LOC_STS => {
                bit(self.has_access(locality), loc_sts::GRANTED)
                    | bit(self.seized & 1u8.wrapping_shl(locality.into()) != 0, loc_sts::BEEN_SEIZED)
            }
            reg::INTF_ID => INTF_ID,
            reg::INTF_ID_HIGH => INTF_ID_HIGH,
            reg::CTRL_STS => bit(self.phase == Phase::Idle, ctrl_sts::IDLE),
            reg::CTRL_CANCEL => bit(self.cancel, 1),
            reg::CTRL_START => bit(self.phase == Phase::Executing, 1),
            reg::CMD_SIZE | reg::RSP_SIZE => MAX_MESSAGE as u32,
            reg::CMD_ADDR | reg::RSP_ADDR => (super::ADDRESS + u64::from(locality) * PAGE + reg::DATA_BUFFER) as u32,
            // LOC_CTRL is for writing only; CTRL_REQ's bits are done as soon as they are set; there are no interrupts and
            // no chunks.
            reg::LOC_CTRL
            | reg::CTRL_REQ
            | reg::CTRL_EXT
            | reg::CTRL_EXT_HIGH
            | reg::INT_ENABLE
            | reg::INT_STS
            | reg::CMD_ADDR_HIGH
            | reg::RSP_ADDR_HIGH => 0,
            _ => u32::MAX,
        }
    }

    /// Writes; returns what the device is to do, in this order.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (locality, register) = ((place / PAGE) as u8, place % PAGE);
            if let Some(place) = register.checked_sub(reg::DATA_BUFFER) {
                self.write_buffer(locality, place, data[at]);
                at += 1;
                continue;
            }
            // The bytes of one register; those that are not written count as zeroes, and all bits are in the first.
            let shift = (register & 3) as usize;
            let count = (4 - shift).min(data.len() - at);
            let mut value = [0; 4];
            value[shift..shift + count].copy_from_slice(&data[at..at + count]);
            effects.push(self.write_register(locality, register & !3, u32::from_le_bytes(value)));
            at += count;
        }
        effects
    }

    fn write_buffer(&mut self, locality: u8, place: u64, byte: u8) {
        let open = self.has_access(locality) && self.phase != Phase::Executing;
        if let Some(kept) = self.buffer.get_mut(place as usize).filter(|_| open) {
            *kept = byte;
            if self.phase == Phase::Idle {
                self.phase = Phase::Ready;
            }
        }
    }

    fn write_register(&mut self, locality: u8, register: u64, value: u32) -> Effect {
        if register == reg::LOC_CTRL {
            return if locality < HARDWARE_LOCALITY { self.control_locality(locality, value) } else { Effect::None };
        }
        if !self.has_access(locality) {
            return Effect::None;
        }
        match register {
            reg::CTRL_REQ if self.phase != Phase::Executing => {
                match value & (ctrl_req::CMD_READY | ctrl_req::GO_IDLE) {
                    ctrl_req::CMD_READY => self.phase = Phase::Ready,
                    ctrl_req::GO_IDLE => self.phase = Phase::Idle,
                    _ => (),
                }
                Effect::None
            }
            reg::CTRL_CANCEL => {
                let asked = value & 1 != 0 && self.phase == Phase::Executing;
                self.cancel = value & 1 != 0;
                if asked { Effect::Cancel } else { Effect::None }
            }
            reg::CTRL_START if value & 1 != 0 && self.phase != Phase::Executing => {
                self.phase = Phase::Executing;
                Effect::Start { locality }
            }
            _ => Effect::None,
        }
    }

    fn control_locality(&mut self, locality: u8, value: u32) -> Effect {
        let mine = 1 << locality;
        if value & loc_ctrl::SEIZE != 0 && self.locality.is_some_and(|active| active < locality) {
            if let Some(loser) = self.locality {
                self.seized |= 1 << loser;
            }
            return self.assign(Some(locality));
        }
        if value & loc_ctrl::RELINQUISH != 0 {
            self.requests &= !mine;
            if self.has_access(locality) {
                // The highest that waits is next.
                return self.assign(self.requests.checked_ilog2().map(|next| next as u8));
            }
            return Effect::None;
        }
        if value & (loc_ctrl::REQUEST_ACCESS | loc_ctrl::SEIZE) != 0 {
            match self.locality {
                None => return self.assign(Some(locality)),
                Some(active) if active != locality => self.requests |= mine,
                Some(_) => (),
            }
        }
        Effect::None
    }

    /// Gives the TPM to another locality, which finds nothing of what the last one did.
    fn assign(&mut self, locality: Option<u8>) -> Effect {
        let busy = self.phase == Phase::Executing;
        self.locality = locality;
        if let Some(locality) = locality {
            self.requests &= !(1 << locality);
            self.seized &= !(1 << locality);
        }
        self.phase = Phase::Idle;
        self.cancel = false;
        self.clear();
        if busy { Effect::GiveUp } else { Effect::None }
    }
}
