//! virtio-console (virtio 1.2 §5.3): a plain port or the first of many; writes a line, and can echo.

use crate::dma::Dma;
use crate::drivers::virtio::{Device, Queue, Segment, kind};
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::{ensure, fail, println, text, time, trap};

const FEATURE_SIZE: u64 = 1;
const FEATURE_MULTIPORT: u64 = 1 << 1;
/// Control messages: id u32, event u16, value u16.
const CONTROL_BYTES: usize = 8;
const CONTROL_BUFFER: usize = 128;
const CONTROL_BUFFERS: usize = 16;
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;
const PORT_MICROS: u64 = 1_000_000;
const LINE: &[u8] = b"probe: hello from virtio-console\n";
/// Ends an echo: end of transmission, Ctrl+D.
const END: u8 = 4;
const ECHO_SECONDS: u64 = 30;

/// Negotiates ports, writes a line, and with `consoleecho` sends back what comes until Ctrl+D.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::CONSOLE).nth(index).ok_or(Failure::Absent)?;
    let device = Device::open(function, FEATURE_SIZE | FEATURE_MULTIPORT)?;
    let multiport = device.has(FEATURE_MULTIPORT);
    let mut receive = device.queue(0, 16)?;
    let mut transmit = device.queue(1, 16)?;
    let mut control = match multiport {
        true => Some(Control::new(device.queue(2, CONTROL_BUFFERS as u16)?, device.queue(3, 16)?)),
        false => None,
    };
    device.start()?;
    let mut kind = "plain port";
    if let Some(control) = &mut control {
        kind = match control.negotiate()? {
            Port::Console => "console port of many",
            Port::Plain => "port of many",
            Port::None => {
                device.reset()?;
                return Ok(text!("no port"));
            }
        };
    }
    let before = trap::count(transmit.vector);
    let line = Dma::new(LINE.len());
    line.put(0, LINE);
    transmit.request(&[Segment::read(&line)])?;
    ensure!(transmit.interrupted(before), "no interrupt for the line that was sent");
    let mut echoed = 0;
    if machine.words.has("consoleecho") {
        echoed = echo(&mut receive, &mut transmit)?;
    }
    let config = device.config()?;
    let size = if device.has(FEATURE_SIZE) { (config.read16(0), config.read16(2)) } else { (0, 0) };
    device.reset()?;
    Ok(text!("{kind}, {}x{} characters, wrote a line, echoed {echoed} bytes", size.0, size.1))
}

fn echo(receive: &mut Queue, transmit: &mut Queue) -> Outcome<usize> {
    println!("probe: console echo ready");
    let buffer = Dma::new(256);
    let mut echoed = 0;
    let deadline = time::micros() + ECHO_SECONDS * 1_000_000;
    receive.push(&[Segment::write(&buffer)]);
    receive.notify();
    while time::micros() < deadline {
        let Some((_, written)) = receive.pop() else { continue };
        let bytes = buffer.part(0, (written as usize).min(buffer.len()));
        if bytes.len() > 0 {
            transmit.request(&[Segment::read(&bytes)])?;
            echoed += bytes.len();
        }
        if bytes.bytes().contains(&END) {
            return Ok(echoed);
        }
        receive.push(&[Segment::write(&buffer)]);
        receive.notify();
    }
    fail!("no Ctrl+D within {ECHO_SECONDS} s; {echoed} bytes echoed")
}

/// What port 0 of a device with many ports is.
enum Port {
    Console,
    Plain,
    None,
}

/// The control queues of a device with many ports.
struct Control {
    receive: Queue,
    transmit: Queue,
    buffers: [Dma; CONTROL_BUFFERS],
    message: Dma,
}

impl Control {
    fn new(receive: Queue, transmit: Queue) -> Control {
        let buffers = core::array::from_fn(|_| Dma::new(CONTROL_BUFFER));
        Control { receive, transmit, buffers, message: Dma::new(CONTROL_BYTES) }
    }

    fn send(&mut self, port: u32, event: u16, value: u16) -> Outcome<()> {
        self.message.write(0, port);
        self.message.write(4, event);
        self.message.write(6, value);
        self.transmit.request(&[Segment::read(&self.message)])?;
        Ok(())
    }

    /// The handshake for port 0 (§5.3.6.2).
    fn negotiate(&mut self) -> Outcome<Port> {
        for buffer in &self.buffers[..usize::from(self.receive.size)] {
            self.receive.push(&[Segment::write(buffer)]);
        }
        self.receive.notify();
        self.send(u32::MAX, DEVICE_READY, 1)?;
        let (mut added, mut console) = (false, false);
        // A console says so at once; what comes without being a console is known only by waiting a little.
        let deadline = time::micros() + PORT_MICROS;
        while !console && time::micros() < deadline {
            let Some((head, written)) = self.receive.pop() else { continue };
            let buffer = self.buffers[usize::from(head)];
            ensure!(written as usize >= CONTROL_BYTES, "a control message of {written} bytes");
            let (port, event): (u32, u16) = (buffer.read(0), buffer.read(4));
            self.receive.push(&[Segment::write(&buffer)]);
            self.receive.notify();
            match (port, event) {
                (_, PORT_ADD) => {
                    self.send(port, PORT_READY, 1)?;
                    added |= port == 0;
                }
                (0, CONSOLE_PORT) => {
                    self.send(0, PORT_OPEN, 1)?;
                    console = true;
                }
                (_, PORT_NAME | PORT_OPEN | CONSOLE_PORT) => {}
                (_, other) => println!("probe: console control message {other} for port {port}"),
            }
        }
        Ok(match (added, console) {
            (false, _) => Port::None,
            (true, false) => Port::Plain,
            (true, true) => Port::Console,
        })
    }
}
