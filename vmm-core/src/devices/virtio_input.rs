//! virtio input device (virtio 1.2 §5.8): a keyboard, or a tablet (absolute pointer with buttons and wheels), fed from
//! the console's [`InputPort`].

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::backend::input::{ABS_MAX, InputEvent, InputPort, code, ev};
use crate::base::{SavedState, StateError};
use crate::virtio::{Chain, ConfigSpace, Device, Fault, Info, Io, Role, Source, feature, id};

const EVENTS: usize = 0;
const STATUS: usize = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// The longest report: as many events as the queue has buffers.
const MAX_REPORT: usize = QUEUE_SIZES[EVENTS] as usize;
/// `struct virtio_input_event`.
const EVENT_SIZE: u32 = 8;

const PORT: u32 = 0;

/// PCI class of input devices, and the subclasses of keyboards and of others.
const CLASS: [u8; 3] = [9, 0x80, 0];

/// What `select` chooses (virtio 1.2 §5.8.4).
mod select {
    pub const ID_NAME: u8 = 0x01;
    pub const ID_SERIAL: u8 = 0x02;
    pub const ID_DEVIDS: u8 = 0x03;
    pub const EV_BITS: u8 = 0x11;
    pub const ABS_INFO: u8 = 0x12;
}

/// Offset of the answer in the configuration registers.
const ANSWER: usize = 8;
/// The longest answer.
const ANSWER_ROOM: usize = 128;

/// Linux's automatic repeat of keys: the guest repeats them, not the host.
const EV_REP: u8 = 0x14;
/// The value of a key event that repeats.
const REPEATED: i32 = 2;
/// Linux's bus number for virtual devices.
const BUS_VIRTUAL: u16 = 6;
/// Keys with a code: all of a PC's keyboard and its media keys.
const LAST_KEY: u16 = 248;
/// Num lock, caps lock, scroll lock.
const LEDS: u16 = 3;

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Keyboard,
    Tablet,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Keyboard => "Orangery Keyboard",
            Kind::Tablet => "Orangery Tablet",
        }
    }

    /// The codes of a type of events that the device has.
    fn codes(self, kind: u16) -> Vec<u16> {
        match (self, kind) {
            (Kind::Keyboard, ev::KEY) => (1..=LAST_KEY).collect(),
            (Kind::Keyboard, ev::LED) => (0..LEDS).collect(),
            (Kind::Tablet, ev::KEY) => (code::BTN_LEFT..=code::BTN_EXTRA).collect(),
            (Kind::Tablet, ev::REL) => vec![code::REL_HWHEEL, code::REL_WHEEL],
            (Kind::Tablet, ev::ABS) => vec![code::ABS_X, code::ABS_Y],
            _ => Vec::new(),
        }
    }

    /// Whether an event of the port is one of this device's.
    fn sends(self, event: &InputEvent) -> bool {
        let repeated = event.kind == ev::KEY && event.value == REPEATED;
        event.kind != ev::LED && !repeated && self.codes(event.kind).contains(&event.code)
    }

    /// The answer to a query of the configuration registers; empty where there is none.
    fn answer(self, select: u8, subselect: u8) -> Vec<u8> {
        match select {
            select::ID_NAME => self.name().as_bytes().to_vec(),
            select::ID_SERIAL => b"1".to_vec(),
            select::ID_DEVIDS => {
                let product = self as u16 + 1;
                [BUS_VIRTUAL, 0x1af4, product, 1].iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            select::EV_BITS if subselect == EV_REP && self == Kind::Keyboard => vec![0],
            select::EV_BITS => {
                let mut bits = Vec::new();
                for code in self.codes(u16::from(subselect)) {
                    let at = usize::from(code / 8);
                    bits.resize(bits.len().max(at + 1), 0);
                    bits[at] |= 1 << (code % 8);
                }
                bits
            }
            select::ABS_INFO if self.codes(ev::ABS).contains(&u16::from(subselect)) => {
                // Least, most, fuzz, flat, resolution.
                [0, ABS_MAX, 0, 0, 0].iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The configuration registers: a question in the first two bytes, its answer in the rest.
struct Registers {
    kind: Kind,
    select: AtomicU8,
    subselect: AtomicU8,
}

impl ConfigSpace for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (select, subselect) = (self.select.load(Ordering::Acquire), self.subselect.load(Ordering::Acquire));
        let answer = self.kind.answer(select, subselect);
        let mut bytes = [0; ANSWER + ANSWER_ROOM];
        bytes[..3].copy_from_slice(&[select, subselect, answer.len() as u8]);
        bytes[ANSWER..ANSWER + answer.len()].copy_from_slice(&answer);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset as usize + i).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate() {
            match offset + i as u64 {
                0 => self.select.store(byte, Ordering::Release),
                1 => self.subselect.store(byte, Ordering::Release),
                _ => {}
            }
        }
    }

    fn reset(&self) {
        self.select.store(0, Ordering::Release);
        self.subselect.store(0, Ordering::Release);
    }
}

/// The device.
pub struct Input {
    kind: Kind,
    port: InputPort,
    config: Arc<Registers>,
    /// A report that waits for buffers, whole.
    report: Vec<InputEvent>,
    /// The most buffers that the driver has offered at a time.
    most: u16,
    leds: u8,
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
pub struct State {
    select: (u8, u8),
    /// Type, code, value.
    report: Vec<(u16, u16, i32)>,
    leds: u8,
}

impl SavedState for State {
    const VERSION: u32 = 1;
}

impl Input {
    /// A keyboard that types what comes through `port`.
    pub fn keyboard(port: InputPort) -> Input {
        Input::new(Kind::Keyboard, port)
    }

    /// A tablet that points where `port` says.
    pub fn tablet(port: InputPort) -> Input {
        Input::new(Kind::Tablet, port)
    }

    fn new(kind: Kind, port: InputPort) -> Input {
        let config = Arc::new(Registers { kind, select: AtomicU8::new(0), subselect: AtomicU8::new(0) });
        Input { kind, port, config, report: Vec::new(), most: 0, leds: 0 }
    }

    /// Whether a driver that took these features is an operating system's. One that knows neither way to fewer interrupts and
    /// descriptors is firmware's, and has no use of a keyboard beside the i8042's: OVMF's of 2024 keeps the last key only, and
    /// tells nobody of the key for its menu.
    fn is_for(&self, features: u64) -> bool {
        self.kind == Kind::Tablet || features & (feature::EVENT_IDX | feature::INDIRECT_DESC) != 0
    }

    /// Takes the port's next report that has something of this device's, unless one waits already. False: none came.
    fn next_report(&mut self) -> bool {
        while self.report.is_empty() {
            let Some(event) = self.port.receive() else { return false };
            let mut next = Some(event);
            while let Some(event) = next.filter(|&event| event != InputEvent::SYN) {
                // What no guest could ever take is dropped; the report's end has room.
                if self.kind.sends(&event) && self.report.len() < MAX_REPORT - 1 {
                    self.report.push(event);
                }
                next = self.port.receive();
            }
        }
        if self.report.last() != Some(&InputEvent::SYN) {
            self.report.push(InputEvent::SYN);
        }
        true
    }

    /// Sends what waits. A driver that has looked at what it got offers those buffers again, which tells that it is taken; one that
    /// polls says no word of it.
    fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        if !self.is_for(io.features()) {
            return Ok(());
        }
        self.most = self.most.max(io.waiting(EVENTS)?);
        self.send(io)?;
        if self.report.is_empty() && io.waiting(EVENTS)? >= self.most {
            self.port.tell_taken();
        }
        Ok(())
    }

    /// Sends reports while there are any and the driver has buffers for all of one.
    fn send(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        while self.next_report() {
            let mut chains: Vec<Chain> = Vec::new();
            while chains.len() < self.report.len() {
                match io.pop(EVENTS)? {
                    Some(chain) => chains.push(chain),
                    None => {
                        // Never half a report: the buffers go back, last one first, and it waits for more.
                        while let Some(chain) = chains.pop() {
                            io.put_back(EVENTS, chain);
                        }
                        return Ok(());
                    }
                }
            }
            for (event, chain) in self.report.drain(..).zip(chains) {
                let InputEvent { kind, code, value } = event;
                let mut bytes = [0; EVENT_SIZE as usize];
                bytes[..2].copy_from_slice(&kind.to_le_bytes());
                bytes[2..4].copy_from_slice(&code.to_le_bytes());
                bytes[4..].copy_from_slice(&value.to_le_bytes());
                chain.writer().write_all(&bytes)?;
                chain.complete(EVENT_SIZE);
            }
        }
        Ok(())
    }

    /// Takes what the driver sets: LEDs.
    fn take_status(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        while let Some(chain) = io.pop(STATUS)? {
            let mut bytes = [0; EVENT_SIZE as usize];
            chain.reader().read_exact(&mut bytes)?;
            let [kind, code] = [0, 2].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            let on = bytes[4..] != [0; 4];
            if kind == ev::LED && self.kind.codes(ev::LED).contains(&code) {
                self.leds = self.leds & !(1 << code) | u8::from(on) << code;
                self.port.set_leds(self.leds);
            }
            chain.complete(0);
        }
        Ok(())
    }
}

impl Device for Input {
    const INFO: Info = Info::new(id::INPUT, "input", Role::Io).class(CLASS);
    type State = State;

    fn queues(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.port.claim(self.is_for(io.features()));
        Ok(())
    }

    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        if queue == STATUS { self.take_status(io) } else { self.serve(io) }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { id: PORT, fd: self.port.as_fd().as_raw_fd() }]
    }

    fn on_source(&mut self, _id: u32, io: &mut Io<'_>) -> Result<(), Fault> {
        self.port.acknowledge();
        self.serve(io)
    }

    fn reset(&mut self) {
        self.report.clear();
        self.most = 0;
        self.leds = 0;
        self.port.set_leds(0);
        self.port.claim(false);
    }

    fn save(&self) -> State {
        let Input { kind: _, port: _, config, report, most: _, leds } = self;
        State {
            select: (config.select.load(Ordering::Acquire), config.subselect.load(Ordering::Acquire)),
            report: report.iter().map(|&InputEvent { kind, code, value }| (kind, code, value)).collect(),
            leds: *leds,
        }
    }

    fn restore(&mut self, state: State) -> Result<(), StateError> {
        let State { select, report, leds } = state;
        if report.len() > MAX_REPORT {
            return Err(StateError::invalid("input", format!("it has a report of {} events", report.len())));
        }
        self.config.select.store(select.0, Ordering::Release);
        self.config.subselect.store(select.1, Ordering::Release);
        self.report = report.into_iter().map(|(kind, code, value)| InputEvent { kind, code, value }).collect();
        self.leds = leds;
        self.port.set_leds(leds);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Guest, Segments};

    fn keyboard() -> Input {
        Input::keyboard(InputPort::new().unwrap())
    }

    fn tablet() -> Input {
        Input::tablet(InputPort::new().unwrap())
    }

    crate::virtio_conformance!(keyboard_conformance, keyboard);
    crate::virtio_conformance!(tablet_conformance, tablet);

    fn started(make: fn(InputPort) -> Input) -> (Guest<Input>, InputPort) {
        let port = InputPort::new().unwrap();
        let mut guest = Guest::new(make(port.clone()));
        guest.start();
        (guest, port)
    }

    /// Puts buffers in the event queue.
    fn offer(guest: &mut Guest<Input>, count: usize) {
        for _ in 0..count {
            guest.put(EVENTS, Segments { readable: &[], writable: &[EVENT_SIZE] }).unwrap();
        }
        guest.kick(EVENTS);
    }

    fn received(guest: &mut Guest<Input>) -> Vec<InputEvent> {
        let event = |guest: &mut Guest<Input>| {
            let (_, len, bytes) = guest.take_used(EVENTS)?;
            assert_eq!(len, EVENT_SIZE);
            let [kind, code] = [0, 2].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            Some(InputEvent { kind, code, value: i32::from_le_bytes(bytes[4..].try_into().unwrap()) })
        };
        std::iter::from_fn(|| event(guest)).collect()
    }

    fn query(guest: &Guest<Input>, select: u8, subselect: u8) -> Vec<u8> {
        guest.write_device_config(0, &[select]);
        guest.write_device_config(1, &[subselect]);
        let mut size = [0];
        guest.read_device_config(2, &mut size);
        let mut answer = vec![0; usize::from(size[0])];
        guest.read_device_config(8, &mut answer);
        answer
    }

    fn bits(bytes: &[u8]) -> Vec<usize> {
        (0..bytes.len() * 8).filter(|&bit| bytes[bit / 8] >> (bit % 8) & 1 != 0).collect()
    }

    #[test]
    fn a_keyboard_describes_its_keys_and_lights() {
        let (guest, _) = started(Input::keyboard);
        assert_eq!(query(&guest, select::ID_NAME, 0), b"Orangery Keyboard");
        assert_eq!(bits(&query(&guest, select::EV_BITS, ev::KEY as u8)), (1..=248).collect::<Vec<_>>());
        assert_eq!(bits(&query(&guest, select::EV_BITS, ev::LED as u8)), [0, 1, 2]);
        assert_eq!(query(&guest, select::EV_BITS, EV_REP).len(), 1);
        assert!(query(&guest, select::EV_BITS, ev::ABS as u8).is_empty());
        assert_eq!(query(&guest, select::ID_DEVIDS, 0), [6, 0, 0xf4, 0x1a, 1, 0, 1, 0]);
        assert!(query(&guest, 0xff, 0xff).is_empty());
    }

    #[test]
    fn a_tablet_describes_its_axes_buttons_and_wheels() {
        let (guest, _) = started(Input::tablet);
        assert_eq!(bits(&query(&guest, select::EV_BITS, ev::KEY as u8)), [0x110, 0x111, 0x112, 0x113, 0x114]);
        assert_eq!(bits(&query(&guest, select::EV_BITS, ev::REL as u8)), [6, 8]);
        assert_eq!(bits(&query(&guest, select::EV_BITS, ev::ABS as u8)), [0, 1]);
        assert!(query(&guest, select::EV_BITS, EV_REP).is_empty());
        let axis = query(&guest, select::ABS_INFO, 1);
        assert_eq!((axis.len(), &axis[4..8]), (20, &ABS_MAX.to_le_bytes()[..]));
        assert!(query(&guest, select::ABS_INFO, 2).is_empty());
    }

    #[test]
    fn the_port_belongs_to_the_driver_while_it_is_up() {
        let (mut guest, port) = started(Input::keyboard);
        assert!(port.is_claimed());
        guest.reset();
        assert!(!port.is_claimed());
        guest.start();
        assert!(port.is_claimed());
    }

    #[test]
    fn firmware_s_driver_has_the_tablet_and_leaves_the_keys_to_the_i8042() {
        let port = InputPort::new().unwrap();
        let mut guest = Guest::new(Input::keyboard(port.clone()));
        guest.start_with(0);
        offer(&mut guest, 4);
        port.send(&[InputEvent::key(30, true)]);
        guest.run();
        assert!(!port.is_claimed() && received(&mut guest).is_empty());
        assert_eq!(port.receive(), Some(InputEvent::key(30, true)));
        guest.reset();
        guest.start_with(feature::INDIRECT_DESC);
        assert!(port.is_claimed());
        let port = InputPort::new().unwrap();
        Guest::new(Input::tablet(port.clone())).start_with(0);
        assert!(port.is_claimed());
    }

    #[test]
    fn a_key_arrives_as_a_report() {
        let (mut guest, port) = started(Input::keyboard);
        offer(&mut guest, 8);
        port.send(&[InputEvent::key(30, true)]);
        guest.run();
        assert_eq!(received(&mut guest), [InputEvent::key(30, true), InputEvent::SYN]);
    }

    #[test]
    fn a_key_is_taken_when_the_driver_offers_its_buffers_again_even_without_a_word() {
        let (mut guest, port) = started(Input::keyboard);
        offer(&mut guest, 4);
        port.send(&[InputEvent::key(30, true)]);
        guest.run();
        assert_eq!(received(&mut guest).len(), 2);
        assert!(!port.is_taken());
        guest.run();
        assert!(!port.is_taken());
        for _ in 0..2 {
            guest.put(EVENTS, Segments { readable: &[], writable: &[EVENT_SIZE] }).unwrap();
        }
        // Being asked is what makes it look.
        assert!(!port.is_taken());
        guest.run();
        assert!(port.is_taken());
    }

    #[test]
    fn a_report_waits_until_there_are_buffers_for_all_of_it() {
        let (mut guest, port) = started(Input::tablet);
        let position = |axis, value| InputEvent { kind: ev::ABS, code: axis, value };
        let report = [position(code::ABS_X, 5), position(code::ABS_Y, 6), InputEvent::key(code::BTN_LEFT, true)];
        offer(&mut guest, 3);
        port.send(&report);
        guest.run();
        assert!(received(&mut guest).is_empty());
        guest.pause();
        guest.resume();
        assert!(received(&mut guest).is_empty());
        offer(&mut guest, 1);
        assert_eq!(received(&mut guest), [&report[..], &[InputEvent::SYN]].concat());
    }

    #[test]
    fn events_of_another_device_and_repeats_are_left_out_and_empty_reports_are_none() {
        let (mut guest, port) = started(Input::tablet);
        offer(&mut guest, 8);
        port.send(&[InputEvent { kind: ev::REL, code: code::REL_X, value: 3 }]);
        port.send(&[InputEvent::key(30, true)]);
        port.send(&[InputEvent { kind: ev::REL, code: code::REL_WHEEL, value: -1 }]);
        guest.run();
        assert_eq!(
            received(&mut guest),
            [InputEvent { kind: ev::REL, code: code::REL_WHEEL, value: -1 }, InputEvent::SYN]
        );
        let (mut guest, port) = started(Input::keyboard);
        offer(&mut guest, 8);
        port.send(&[InputEvent { kind: ev::KEY, code: 30, value: REPEATED }]);
        guest.run();
        assert!(received(&mut guest).is_empty());
    }

    #[test]
    fn a_report_longer_than_the_queue_is_cut_and_blocks_nothing() {
        let (mut guest, port) = started(Input::keyboard);
        offer(&mut guest, 64);
        let long: Vec<_> = (1..=100).map(|key| InputEvent::key(key, true)).collect();
        port.send(&long);
        port.send(&[InputEvent::key(1, false)]);
        guest.run();
        let got = received(&mut guest);
        assert_eq!((got.len(), got.last()), (64, Some(&InputEvent::SYN)));
        offer(&mut guest, 8);
        assert_eq!(received(&mut guest), [InputEvent::key(1, false), InputEvent::SYN]);
    }

    #[test]
    fn lights_are_told_to_the_host_and_go_out_on_reset() {
        let (mut guest, port) = started(Input::keyboard);
        let light = |guest: &mut Guest<Input>, code: u8, on: u8| {
            let answer = guest.request(STATUS, &[&[ev::LED as u8, 0, code, 0, on, 0, 0, 0]], &[]);
            assert_eq!(answer, Some(vec![]));
        };
        light(&mut guest, 1, 1);
        light(&mut guest, 0, 1);
        light(&mut guest, 9, 1);
        assert_eq!(port.leds(), 0b011);
        light(&mut guest, 0, 0);
        assert_eq!(port.leds(), 0b010);
        guest.reset();
        assert_eq!(port.leds(), 0);
    }

    #[test]
    fn a_waiting_report_and_the_lights_survive_a_checkpoint() {
        let (mut guest, port) = started(Input::keyboard);
        guest.request(STATUS, &[&[ev::LED as u8, 0, 2, 0, 1, 0, 0, 0]], &[]);
        port.send(&[InputEvent::key(30, true)]);
        guest.run();
        let other = InputPort::new().unwrap();
        guest.move_to(Input::keyboard(other.clone()), None);
        assert!(other.is_claimed());
        assert_eq!(other.leds(), 0b100);
        offer(&mut guest, 2);
        assert_eq!(received(&mut guest), [InputEvent::key(30, true), InputEvent::SYN]);
    }
}
