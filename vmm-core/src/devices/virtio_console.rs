//! virtio console (virtio 1.2 §5.3): one port, a byte stream both ways.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::chardev::CharPort;
use crate::base::{SavedState, StateError};
use crate::virtio::{Chain, ConfigSpace, Device, Fault, Info, Io, Role, Source, id};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Sources: bytes from the host; room for bytes to it.
const INPUT: u32 = 0;
const ROOM: u32 = 1;

/// The driver may print a character through a register, before its queues exist.
const F_EMERG_WRITE: u64 = 1 << 2;
/// `struct virtio_console_config`: columns, rows, ports, emergency write.
const EMERG_WRITE: u64 = 8;
/// Bytes that are moved at once.
const CHUNK: usize = 4096;

/// The device.
pub struct Console {
    port: CharPort,
    config: Arc<Registers>,
    /// How much of the oldest transmitted buffer the host has taken: the buffer stays in its queue until it has all.
    sent: usize,
}

/// What a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    sent: u32,
}

impl SavedState for ConsoleState {
    const VERSION: u32 = 1;
}

struct Registers {
    port: CharPort,
}

impl ConfigSpace for Registers {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == EMERG_WRITE
            && let Some(&byte) = data.first()
        {
            self.port.write(&[byte]);
        }
    }
}

impl Console {
    /// A console on the device's end of a stream.
    pub fn new(port: CharPort) -> Console {
        Console { config: Arc::new(Registers { port: port.clone() }), port, sent: 0 }
    }

    /// Fills the driver's buffers with what has come in.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.port.acknowledge();
        while self.port.has_input() {
            let Some(chain) = io.pop(RECEIVE)? else { break };
            let mut writer = chain.writer();
            let mut bytes = [0; CHUNK];
            let count = self.port.read(&mut bytes[..writer.remaining().min(CHUNK)]);
            writer.write_all(&bytes[..count])?;
            chain.complete(count as u32);
        }
        Ok(())
    }

    /// Sends what the host has room for.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        self.port.acknowledge_writable();
        while let Some(chain) = io.pop(TRANSMIT)? {
            if !self.send(&chain)? {
                io.put_back(TRANSMIT, chain);
                break;
            }
            self.sent = 0;
            chain.complete(0);
        }
        Ok(())
    }

    /// Sends the rest of a buffer; false when the host has no more room.
    fn send(&mut self, chain: &Chain) -> Result<bool, Fault> {
        let mut reader = chain.reader();
        reader.skip(self.sent.min(reader.remaining()))?;
        let mut bytes = [0; CHUNK];
        while reader.remaining() > 0 {
            let len = reader.clone().read(&mut bytes)?;
            let taken = self.port.write(&bytes[..len]);
            reader.skip(taken)?;
            self.sent += taken;
            if taken < len {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Device for Console {
    const INFO: Info = Info::new(id::CONSOLE, "console", Role::Io).class([7, 0x80, 0]);
    type State = ConsoleState;

    fn features(&self) -> u64 {
        F_EMERG_WRITE
    }

    fn queues(&self) -> &[u16] {
        &[128, 128]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        if queue == RECEIVE { self.receive(io) } else { self.transmit(io) }
    }

    fn sources(&self) -> Vec<Source> {
        let input = Source { id: INPUT, fd: self.port.as_fd().as_raw_fd() };
        vec![input, Source { id: ROOM, fd: self.port.writable().as_raw_fd() }]
    }

    fn on_source(&mut self, id: u32, io: &mut Io<'_>) -> Result<(), Fault> {
        if id == INPUT { self.receive(io) } else { self.transmit(io) }
    }

    fn reset(&mut self) {
        let Console { port: _, config: _, sent } = self;
        *sent = 0;
    }

    fn save(&self) -> ConsoleState {
        let Console { port: _, config: _, sent } = self;
        ConsoleState { sent: *sent as u32 }
    }

    fn restore(&mut self, state: ConsoleState) -> Result<(), StateError> {
        let ConsoleState { sent } = state;
        self.sent = sent as usize;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Guest, Segments};

    crate::virtio_conformance!(conformance, || Console::new(CharPort::pair().unwrap().0));

    fn console() -> (Guest<Console>, CharPort) {
        let (device, host) = CharPort::pair().unwrap();
        let mut guest = Guest::new(Console::new(device));
        guest.start();
        (guest, host)
    }

    fn read(host: &CharPort) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = host.read(&mut bytes);
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn what_the_guest_sends_arrives() {
        let (mut guest, host) = console();
        guest.request(TRANSMIT, &[b"hel", b"lo"], &[]).unwrap();
        assert_eq!(read(&host), b"hello");
    }

    #[test]
    fn what_the_host_sends_waits_for_a_buffer_and_fills_it() {
        let (mut guest, host) = console();
        host.write(b"world");
        guest.run();
        assert_eq!(guest.request(RECEIVE, &[], &[3]).unwrap(), b"wor");
        assert_eq!(guest.request(RECEIVE, &[], &[3]).unwrap(), b"ld");
        guest.put(RECEIVE, Segments { readable: &[], writable: &[16] });
        guest.kick(RECEIVE);
        assert!(guest.take_used(RECEIVE).is_none());
        host.write(b"!");
        guest.run();
        assert_eq!(&guest.take_used(RECEIVE).unwrap().2[..1], b"!");
    }

    #[test]
    fn a_host_that_does_not_read_holds_the_guest_up_and_loses_nothing() {
        let (mut guest, host) = console();
        let lines: Vec<Vec<u8>> = (0..60u8).map(|i| vec![i; 2000]).collect();
        for line in &lines {
            guest.put(TRANSMIT, Segments { readable: &[line], writable: &[] }).unwrap();
        }
        guest.kick(TRANSMIT);
        let mut seen = read(&host);
        guest.run();
        assert!(seen.len() < 120_000, "the ring has no bound");
        seen.extend(read(&host));
        assert_eq!(seen, lines.concat());
        let completed = std::iter::from_fn(|| guest.take_used(TRANSMIT)).count();
        assert_eq!(completed, 60);
    }

    #[test]
    fn a_checkpoint_in_the_middle_of_a_buffer_sends_no_byte_twice() {
        let (mut guest, host) = console();
        let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        guest.put(TRANSMIT, Segments { readable: &[&data], writable: &[] }).unwrap();
        guest.kick(TRANSMIT);
        let mut seen = read(&host);
        guest.run();
        seen.extend(read(&host));
        let (device, other) = CharPort::pair().unwrap();
        guest.move_to(Console::new(device), None);
        seen.extend(read(&other));
        assert_eq!(seen, data);
    }

    #[test]
    fn the_emergency_register_prints_before_there_is_a_driver() {
        let (device, host) = CharPort::pair().unwrap();
        let guest = Guest::new(Console::new(device));
        guest.write_device_config(EMERG_WRITE as u32, &[b'!', 0, 0, 0]);
        assert_eq!(read(&host), b"!");
    }
}
