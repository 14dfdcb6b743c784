use super::*;
use crate::base::InlineExecutor;
use crate::testkit::FakeLine;

struct Fixture {
    host: CharPort,
    irq: FakeLine,
    executor: InlineExecutor,
    serial: Serial,
}

fn fixture() -> Fixture {
    let (host, device) = CharPort::pair().unwrap();
    let (irq, executor) = (FakeLine::default(), InlineExecutor::new().unwrap());
    let serial = Serial::new("com1", device, Arc::new(irq.clone()), Arc::new(executor.clone()));
    serial.resume();
    executor.turn(8);
    Fixture { host, irq, executor, serial }
}

impl Fixture {
    fn read(&self, offset: u64) -> u8 {
        let mut byte = [0xff];
        BusDevice::read(&self.serial, offset, &mut byte);
        byte[0]
    }

    fn write(&self, offset: u64, byte: u8) {
        assert_eq!(BusDevice::write(&self.serial, offset, &[byte]), None);
    }

    /// What the host received.
    fn output(&self) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let count = self.host.read(&mut bytes);
        bytes.truncate(count);
        bytes
    }

    /// The host sends.
    fn type_in(&self, bytes: &[u8]) {
        assert_eq!(self.host.write(bytes), bytes.len());
        self.executor.turn(8);
    }

    /// Fills the way out, so that the next byte stays in the transmitter.
    fn jam(&self) {
        while self.read(reg::LINE_STATUS) & line::TRANSMITTER_EMPTY != 0 {
            self.write(reg::DATA, b'.');
        }
    }

    fn drain(&self) -> usize {
        let mut total = 0;
        loop {
            let count = self.output().len();
            self.executor.turn(8);
            total += count;
            if count == 0 {
                return total;
            }
        }
    }
}

#[test]
fn bytes_go_out_and_come_in() {
    let guest = fixture();
    for byte in b"login: " {
        assert_eq!(guest.read(reg::LINE_STATUS), 0x60);
        guest.write(reg::DATA, *byte);
    }
    assert_eq!(guest.output(), b"login: ");
    guest.type_in(b"ro");
    assert_eq!(guest.read(reg::LINE_STATUS), 0x61);
    assert_eq!((guest.read(reg::DATA), guest.read(reg::DATA)), (b'r', b'o'));
    assert_eq!(guest.read(reg::LINE_STATUS), 0x60);
}

#[test]
fn the_divisor_hides_behind_dlab_and_a_probing_driver_finds_a_16550a() {
    let guest = fixture();
    guest.write(reg::LINE_CONTROL, 0x83);
    guest.write(reg::DATA, 0x34);
    guest.write(reg::INTERRUPT_ENABLE, 0x12);
    assert_eq!((guest.read(reg::DATA), guest.read(reg::INTERRUPT_ENABLE)), (0x34, 0x12));
    guest.write(reg::LINE_CONTROL, 0x03);
    assert_eq!((guest.read(reg::INTERRUPT_ENABLE), guest.read(reg::LINE_CONTROL)), (0, 3));
    assert!(guest.output().is_empty());
    guest.write(reg::INTERRUPT_ENABLE, 0xff);
    assert_eq!(guest.read(reg::INTERRUPT_ENABLE), 0x0f);
    guest.write(reg::SCRATCH, 0xa5);
    assert_eq!(guest.read(reg::SCRATCH), 0xa5);
    guest.write(reg::INTERRUPT_ENABLE, 0);
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0x01);
    guest.write(reg::INTERRUPT_ID, 0x01);
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0xc1);
    guest.write(reg::INTERRUPT_ID, 0xc6);
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0x01);
}

#[test]
fn interrupts_come_in_their_order_and_only_while_out2_connects_the_line() {
    let guest = fixture();
    guest.write(reg::INTERRUPT_ID, 0x81);
    guest.write(reg::INTERRUPT_ENABLE, 0x0f);
    assert!(!guest.irq.level());
    guest.write(reg::MODEM_CONTROL, modem::OUT2);
    assert!(guest.irq.level());
    // Eight bytes reach the trigger, fewer are told of by the time-out.
    guest.type_in(b"12345678");
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0xc4);
    guest.read(reg::DATA);
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0xcc);
    for _ in 0..7 {
        guest.read(reg::DATA);
    }
    // The transmitter's is over once it is read.
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0xc2);
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0xc1);
    assert!(!guest.irq.level());
    guest.write(reg::DATA, b'x');
    assert!(guest.irq.level());
    assert_eq!(guest.read(reg::INTERRUPT_ID), 0xc2);
}

#[test]
fn enabling_the_transmitter_interrupt_while_it_is_empty_raises_it() {
    let guest = fixture();
    guest.write(reg::MODEM_CONTROL, modem::OUT2);
    guest.write(reg::INTERRUPT_ENABLE, enable::TRANSMITTER);
    assert_eq!((guest.irq.level(), guest.read(reg::INTERRUPT_ID)), (true, 0x02));
    guest.write(reg::INTERRUPT_ENABLE, enable::TRANSMITTER);
    assert!(!guest.irq.level());
    guest.write(reg::INTERRUPT_ENABLE, 0);
    guest.write(reg::INTERRUPT_ENABLE, enable::TRANSMITTER);
    assert_eq!(guest.irq.edges(), 2);
}

#[test]
fn a_transmitter_that_nobody_empties_is_busy_until_somebody_does() {
    let guest = fixture();
    guest.write(reg::INTERRUPT_ID, 0x01);
    guest.write(reg::MODEM_CONTROL, modem::OUT2);
    guest.jam();
    guest.write(reg::INTERRUPT_ENABLE, enable::TRANSMITTER);
    guest.read(reg::INTERRUPT_ID);
    assert!(!guest.irq.level());
    // 15 more fit into the FIFO; the rest of what a careless driver writes is lost.
    for _ in 0..40 {
        guest.write(reg::DATA, b'!');
    }
    assert_eq!(guest.read(reg::LINE_STATUS) & 0x60, 0);
    assert_eq!(guest.drain(), 64 * 1024 + 16);
    assert_eq!((guest.read(reg::LINE_STATUS), guest.irq.level()), (0x60, true));
}

#[test]
fn without_fifos_one_byte_waits_and_the_rest_stays_with_the_host() {
    let guest = fixture();
    guest.type_in(b"abc");
    assert_eq!(lock(&guest.serial.shared.state).received.len(), 1);
    assert_eq!([(); 3].map(|()| guest.read(reg::DATA)), *b"abc");
    assert_eq!(guest.read(reg::LINE_STATUS) & line::DATA_READY, 0);
}

#[test]
fn the_loop_connects_everything_inside_and_nothing_outside() {
    let guest = fixture();
    assert_eq!(guest.read(reg::MODEM_STATUS), 0xb0);
    guest.write(reg::MODEM_CONTROL, modem::LOOP | 0x0a);
    // The test by which drivers find out that there is a port.
    assert_eq!(guest.read(reg::MODEM_STATUS) & 0xf0, 0x90);
    guest.write(reg::MODEM_CONTROL, modem::LOOP | 0x0f);
    guest.read(reg::MODEM_STATUS);
    guest.write(reg::MODEM_CONTROL, modem::LOOP);
    assert_eq!(guest.read(reg::MODEM_STATUS), 0x0f);
    assert_eq!(guest.read(reg::MODEM_STATUS), 0x00);
    guest.type_in(b"outside");
    guest.write(reg::DATA, b'1');
    guest.write(reg::DATA, b'2');
    assert_eq!(guest.read(reg::LINE_STATUS), 0x63);
    assert_eq!((guest.read(reg::DATA), guest.read(reg::LINE_STATUS)), (b'1', 0x60));
    assert!(guest.output().is_empty());
    guest.write(reg::MODEM_CONTROL, 0);
    assert_eq!(guest.read(reg::DATA), b'o');
}

#[test]
fn fifo_clears_throw_away_what_waits() {
    let guest = fixture();
    guest.write(reg::INTERRUPT_ID, 0x01);
    guest.type_in(b"abc");
    guest.jam();
    guest.write(reg::INTERRUPT_ID, 0x07);
    assert_eq!(guest.read(reg::LINE_STATUS), 0x60);
    assert_eq!(guest.drain(), 64 * 1024);
}

#[test]
fn a_paused_port_moves_nothing_and_a_resumed_one_catches_up() {
    let guest = fixture();
    guest.serial.pause();
    guest.type_in(b"k");
    assert!(lock(&guest.serial.shared.state).received.is_empty());
    guest.serial.resume();
    guest.executor.turn(8);
    assert_eq!(guest.read(reg::DATA), b'k');
}

#[test]
fn a_restored_port_has_the_same_registers_bytes_and_interrupt() {
    let guest = fixture();
    guest.write(reg::LINE_CONTROL, 0x83);
    guest.write(reg::INTERRUPT_ENABLE, 0x77);
    guest.write(reg::LINE_CONTROL, 0x03);
    guest.write(reg::INTERRUPT_ID, 0x41);
    guest.write(reg::MODEM_CONTROL, 0x0b);
    guest.write(reg::INTERRUPT_ENABLE, 0x05);
    guest.write(reg::SCRATCH, 9);
    guest.type_in(b"typed");
    guest.jam();
    guest.serial.pause();
    let section = guest.serial.save().unwrap();
    let (_host, device) = CharPort::pair().unwrap();
    let irq = FakeLine::default();
    let fresh = Serial::new("com1", device, Arc::new(irq.clone()), Arc::new(InlineExecutor::new().unwrap()));
    fresh.restore(&section).unwrap();
    assert_eq!(fresh.save().unwrap(), section);
    assert!(irq.level());
    fresh.reset();
    assert!(!irq.level());
    assert_eq!(*lock(&fresh.shared.state), State::power_on());
}

#[test]
fn a_state_with_overfull_fifos_is_refused() {
    let guest = fixture();
    let mut state: SerialState = guest.serial.save().unwrap().decode().unwrap();
    state.received = vec![0; 2];
    assert!(guest.serial.restore(&Section::encode("com1", &state).unwrap()).is_err());
}

#[test]
fn no_access_of_any_size_panics() {
    let guest = fixture();
    for offset in 0..8 {
        for len in [1, 2, 4, 8, 16] {
            for value in [0, 0x55, 0xff] {
                BusDevice::write(&guest.serial, offset, &vec![value; len]);
                BusDevice::read(&guest.serial, offset, &mut vec![0; len]);
            }
        }
    }
}
