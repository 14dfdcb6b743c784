//! A serial port: the UART 16550A (National Semiconductor PC16550D data sheet) at eight ports from 0x3f8 on.
//!
//! Its line is a [`CharPort`] without a speed: a byte is out as soon as it is written, unless nobody takes the bytes;
//! then the transmitter stays busy, which is how the guest learns to wait.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{Work, lock};
use crate::backend::chardev::CharPort;
use crate::base::{Component, Executor, SavedState, Section, StateError, Task};
use crate::hw::{Action, BusDevice, IrqLine};

/// Offsets of the registers.
mod reg {
    /// Receiver buffer and transmitter holding register; divisor, low, while DLAB is set.
    pub const DATA: u64 = 0;
    /// Interrupt enable; divisor, high, while DLAB is set.
    pub const INTERRUPT_ENABLE: u64 = 1;
    /// Interrupt identification (read) and FIFO control (write).
    pub const INTERRUPT_ID: u64 = 2;
    pub const LINE_CONTROL: u64 = 3;
    pub const MODEM_CONTROL: u64 = 4;
    pub const LINE_STATUS: u64 = 5;
    pub const MODEM_STATUS: u64 = 6;
    pub const SCRATCH: u64 = 7;
}

/// Interrupt enables.
mod enable {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMITTER: u8 = 2;
    pub const LINE_STATUS: u8 = 4;
    pub const MODEM_STATUS: u8 = 8;
    pub const ALL: u8 = 0xf;
}

/// Interrupt identifications, the most urgent last but one.
mod id {
    pub const MODEM_STATUS: u8 = 0x0;
    pub const NONE: u8 = 0x1;
    pub const TRANSMITTER: u8 = 0x2;
    pub const RECEIVED: u8 = 0x4;
    pub const LINE_STATUS: u8 = 0x6;
    pub const TIMEOUT: u8 = 0xc;
    pub const FIFOS: u8 = 0xc0;
}

/// FIFO control.
mod fifo {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RECEIVER: u8 = 2;
    pub const CLEAR_TRANSMITTER: u8 = 4;
    /// Received bytes that raise the interrupt, by the two highest bits.
    pub const TRIGGERS: [usize; 4] = [1, 4, 8, 14];
    /// Bits that are kept.
    pub const KEPT: u8 = 0xc9;
    /// Bytes in each FIFO.
    pub const SIZE: usize = 16;
}

const DLAB: u8 = 0x80;

/// Modem control.
mod modem {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    /// On a PC it connects the interrupt line.
    pub const OUT2: u8 = 8;
    pub const LOOP: u8 = 0x10;
    pub const ALL: u8 = 0x1f;
}

/// Line status.
mod line {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const TRANSMITTER_EMPTY: u8 = 0x20;
    pub const ALL_SENT: u8 = 0x40;
}

/// Modem status.
mod status {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
    /// What the other end shows: it is there and ready.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
    /// Ring tells of its end only.
    pub const DELTA_RI: u8 = 4;
}

/// The port.
pub struct Serial {
    name: String,
    shared: Arc<Shared>,
    work: Work,
}

struct Shared {
    port: CharPort,
    irq: Arc<dyn IrqLine>,
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct State {
    divisor: u16,
    enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// A byte was lost since line status was read.
    overrun: bool,
    /// The transmitter became empty since that was reported.
    transmitter_event: bool,
    /// Modem status lines that changed since they were read.
    modem_delta: u8,
    received: VecDeque<u8>,
    /// Bytes that nobody takes yet.
    sending: VecDeque<u8>,
}

/// What a checkpoint keeps of the port.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: u16,
    enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    overrun: bool,
    transmitter_event: bool,
    modem_delta: u8,
    received: Vec<u8>,
    sending: Vec<u8>,
}

impl SavedState for SerialState {
    const VERSION: u32 = 1;
}

impl State {
    fn power_on() -> State {
        // 9600 baud: what a driver that does not look would find on a PC.
        State { divisor: 12, ..State::default() }
    }

    fn divisor_visible(&self) -> bool {
        self.line_control & DLAB != 0
    }

    fn loops(&self) -> bool {
        self.modem_control & modem::LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_control & fifo::ENABLE != 0 { fifo::SIZE } else { 1 }
    }

    fn trigger(&self) -> usize {
        if self.fifo_control & fifo::ENABLE != 0 { fifo::TRIGGERS[usize::from(self.fifo_control >> 6)] } else { 1 }
    }

    fn modem_lines(&self) -> u8 {
        if !self.loops() {
            return status::CONNECTED;
        }
        let wires = [
            (modem::RTS, status::CTS),
            (modem::DTR, status::DSR),
            (modem::OUT1, status::RI),
            (modem::OUT2, status::DCD),
        ];
        wires.iter().filter(|(from, _)| self.modem_control & from != 0).map(|(_, to)| to).sum()
    }

    fn line_status(&self) -> u8 {
        let mut value = 0;
        if !self.received.is_empty() {
            value |= line::DATA_READY;
        }
        if self.overrun {
            value |= line::OVERRUN;
        }
        if self.sending.is_empty() {
            value |= line::TRANSMITTER_EMPTY | line::ALL_SENT;
        }
        value
    }

    /// The most urgent interrupt that is pending and enabled (data sheet, table 5).
    fn interrupt(&self) -> u8 {
        let enabled = |bit| self.enable & bit != 0;
        if enabled(enable::LINE_STATUS) && self.overrun {
            id::LINE_STATUS
        } else if enabled(enable::RECEIVED) && self.received.len() >= self.trigger() {
            id::RECEIVED
        } else if enabled(enable::RECEIVED) && !self.received.is_empty() {
            // The line has no speed, so a pause of four characters is over at once.
            id::TIMEOUT
        } else if enabled(enable::TRANSMITTER) && self.transmitter_event {
            id::TRANSMITTER
        } else if enabled(enable::MODEM_STATUS) && self.modem_delta != 0 {
            id::MODEM_STATUS
        } else {
            id::NONE
        }
    }

    fn set_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value & modem::ALL;
        let after = self.modem_lines();
        let mut delta = (before ^ after) >> 4;
        if after & status::RI != 0 {
            delta &= !status::DELTA_RI;
        }
        self.modem_delta |= delta;
    }

    fn set_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.fifo_control) & fifo::ENABLE != 0;
        if toggled || value & fifo::CLEAR_RECEIVER != 0 {
            self.received.clear();
        }
        if (toggled || value & fifo::CLEAR_TRANSMITTER != 0) && !self.sending.is_empty() {
            self.sending.clear();
            self.transmitter_event = true;
        }
        // The other bits can be set only together with the enable.
        self.fifo_control = if value & fifo::ENABLE != 0 { value & fifo::KEPT } else { 0 };
    }

    /// A byte arrives.
    fn receive(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.overrun = true;
        }
    }
}

impl Shared {
    /// Moves what can be moved in both directions, and drives the interrupt line.
    fn pump(&self, state: &mut State) {
        if !state.sending.is_empty() && !state.loops() {
            let sent = self.port.write(state.sending.make_contiguous());
            state.sending.drain(..sent);
            state.transmitter_event |= state.sending.is_empty();
        }
        if !state.loops() {
            let mut bytes = [0; fifo::SIZE];
            let room = state.capacity().saturating_sub(state.received.len());
            let count = self.port.read(&mut bytes[..room]);
            state.received.extend(&bytes[..count]);
        }
        self.irq.set(state.interrupt() != id::NONE && state.modem_control & modem::OUT2 != 0);
    }

    fn transmit(&self, state: &mut State, byte: u8) {
        state.transmitter_event = false;
        if state.loops() {
            state.receive(byte);
            state.transmitter_event = true;
        } else if state.sending.is_empty() && self.port.write(&[byte]) == 1 {
            state.transmitter_event = true;
        } else if state.sending.len() < state.capacity() {
            state.sending.push_back(byte);
        }
        // A byte beyond that is lost: the driver did not look whether there is room.
    }

    fn read(&self, state: &mut State, offset: u64) -> u8 {
        match offset {
            reg::DATA if state.divisor_visible() => state.divisor as u8,
            reg::DATA => state.received.pop_front().unwrap_or(0),
            reg::INTERRUPT_ENABLE if state.divisor_visible() => (state.divisor >> 8) as u8,
            reg::INTERRUPT_ENABLE => state.enable,
            reg::INTERRUPT_ID => {
                let id = state.interrupt();
                if id == id::TRANSMITTER {
                    state.transmitter_event = false;
                }
                id | if state.fifo_control & fifo::ENABLE != 0 { id::FIFOS } else { 0 }
            }
            reg::LINE_CONTROL => state.line_control,
            reg::MODEM_CONTROL => state.modem_control,
            reg::LINE_STATUS => {
                let value = state.line_status();
                state.overrun = false;
                value
            }
            reg::MODEM_STATUS => state.modem_lines() | std::mem::take(&mut state.modem_delta),
            reg::SCRATCH => state.scratch,
            _ => 0xff,
        }
    }

    fn write(&self, state: &mut State, offset: u64, byte: u8) {
        match offset {
            reg::DATA if state.divisor_visible() => state.divisor = state.divisor & 0xff00 | u16::from(byte),
            reg::DATA => self.transmit(state, byte),
            reg::INTERRUPT_ENABLE if state.divisor_visible() => {
                state.divisor = state.divisor & 0xff | u16::from(byte) << 8;
            }
            reg::INTERRUPT_ENABLE => {
                // Enabling it while the transmitter is empty reports that.
                if byte & !state.enable & enable::TRANSMITTER != 0 && state.sending.is_empty() {
                    state.transmitter_event = true;
                }
                state.enable = byte & enable::ALL;
            }
            reg::INTERRUPT_ID => state.set_fifo_control(byte),
            reg::LINE_CONTROL => state.line_control = byte,
            reg::MODEM_CONTROL => state.set_modem_control(byte),
            // Line status and modem status are for factory tests only.
            reg::SCRATCH => state.scratch = byte,
            _ => (),
        }
    }
}

impl Serial {
    /// A port named `name` (`com1`) between the guest and `port`, which raises `irq`; it waits for bytes on
    /// `executor`.
    pub fn new(name: &str, port: CharPort, irq: Arc<dyn IrqLine>, executor: Arc<dyn Executor>) -> Serial {
        let shared = Arc::new(Shared { port, irq, state: Mutex::new(State::power_on()) });
        Serial { name: name.into(), shared, work: Work::new(executor) }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.shared.state);
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.shared.read(&mut state, at);
        }
        // Of the registers that are polled only some can change anything.
        if !matches!(offset, reg::LINE_CONTROL | reg::MODEM_CONTROL | reg::SCRATCH) {
            self.shared.pump(&mut state);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let mut state = lock(&self.shared.state);
        for (&byte, at) in data.iter().zip(offset..) {
            self.shared.write(&mut state, at, byte);
        }
        self.shared.pump(&mut state);
        None
    }
}

struct Pump(Arc<Shared>);

impl Task for Pump {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(self.0.port.as_fd().as_raw_fd(), 0), (self.0.port.writable().as_raw_fd(), 0)]
    }

    fn start(&mut self) {
        self.0.pump(&mut lock(&self.0.state));
    }

    fn ready(&mut self, _: u32) {
        self.start();
    }

    fn stopped(self: Box<Self>) {}
}

impl Component for Serial {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pause(&self) {
        self.work.stop();
    }

    fn resume(&self) {
        self.work.start(|| Box::new(Pump(self.shared.clone())));
    }

    fn reset(&self) {
        *lock(&self.shared.state) = State::power_on();
        self.shared.irq.set(false);
    }

    fn save(&self) -> Result<Section, StateError> {
        let State {
            divisor,
            enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            overrun,
            transmitter_event,
            modem_delta,
            received,
            sending,
        } = lock(&self.shared.state).clone();
        let kept = SerialState {
            divisor,
            enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            overrun,
            transmitter_event,
            modem_delta,
            received: received.into(),
            sending: sending.into(),
        };
        Section::encode(&self.name, &kept)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SerialState {
            divisor,
            enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            overrun,
            transmitter_event,
            modem_delta,
            received,
            sending,
        } = section.decode()?;
        let restored = State {
            divisor,
            enable: enable & enable::ALL,
            fifo_control: fifo_control & fifo::KEPT,
            line_control,
            modem_control: modem_control & modem::ALL,
            scratch,
            overrun,
            transmitter_event,
            modem_delta: modem_delta & 0xf,
            received: received.into(),
            sending: sending.into(),
        };
        if restored.received.len() > restored.capacity() || restored.sending.len() > restored.capacity() {
            return Err(StateError::invalid(&self.name, "more bytes wait than its FIFOs hold"));
        }
        let mut state = lock(&self.shared.state);
        *state = restored;
        self.shared.irq.set(state.interrupt() != id::NONE && state.modem_control & modem::OUT2 != 0);
        Ok(())
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
