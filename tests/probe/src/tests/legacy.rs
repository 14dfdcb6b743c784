//! Serial port, keyboard controller, VGA text memory and the Bochs display interface.

use crate::cpu::{inb, outb};
use crate::dma::Mmio;
use crate::drivers::i8042::{self, command, config};
use crate::drivers::io_apic::IoApic;
use crate::drivers::serial::COM1;
use crate::drivers::{dispi, i8042::present};
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::trap::VECTOR_IOAPIC;
use crate::{ensure, fail, text, time, trap};

const PATIENCE_MICROS: u64 = 2_000_000;
/// 16550 registers, from the first port.
const IER: u16 = COM1 + 1;
const IIR: u16 = COM1 + 2;
const MCR: u16 = COM1 + 4;
const LSR: u16 = COM1 + 5;
const SCRATCH: u16 = COM1 + 7;
const MCR_ON: u8 = 0x0b;
const MCR_LOOP: u8 = 0x1b;
const LSR_DATA: u8 = 1;
const LSR_IDLE: u8 = 0x60;

/// Bytes come back in loopback mode, and an empty transmitter interrupts.
pub fn serial(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || inb(LSR) == 0xff {
        return Err(Failure::Absent);
    }
    outb(SCRATCH, 0x5a);
    ensure!(inb(SCRATCH) == 0x5a, "the scratch register does not keep its value");
    time::wait_for(PATIENCE_MICROS, || inb(LSR) & LSR_IDLE == LSR_IDLE);
    outb(IER, 0);
    outb(MCR, MCR_LOOP);
    while inb(LSR) & LSR_DATA != 0 {
        inb(COM1);
    }
    let mut wrong = None;
    for sent in [0x55, 0xaa, 0x00, 0xff] {
        outb(COM1, sent);
        let came = time::wait_for(PATIENCE_MICROS, || inb(LSR) & LSR_DATA != 0);
        let received = inb(COM1);
        if !came || received != sent {
            wrong = Some((sent, received));
            break;
        }
    }
    outb(MCR, MCR_ON);
    if let Some((sent, received)) = wrong {
        fail!("in loopback mode {sent:#x} came back as {received:#x}");
    }
    let Some(apic) = IoApic::find(machine) else { return Ok(text!("loopback")) };
    let vector = VECTOR_IOAPIC + 4;
    let before = trap::count(vector);
    apic.route(4, vector);
    outb(IER, 2);
    let interrupted = time::wait_for(PATIENCE_MICROS, || trap::count(vector) != before);
    let cause = inb(IIR) & 0x0f;
    outb(IER, 0);
    apic.mask(4);
    ensure!(interrupted, "an empty transmitter does not raise IRQ 4 (cause {cause:#x})");
    Ok(text!("loopback, IRQ 4"))
}

/// Controller self-test, keyboard and mouse identify themselves, and both raise their interrupts.
pub fn keyboard_controller(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || !present() {
        return Err(Failure::Absent);
    }
    i8042::command(command::DISABLE_KEYBOARD);
    i8042::command(command::DISABLE_AUX);
    i8042::drain();
    let expect = |what: &str, wanted: &[u8]| -> Outcome<()> {
        for &byte in wanted {
            match i8042::read() {
                Some(read) if read == byte => {}
                Some(read) => fail!("{what}: {read:#x} instead of {byte:#x}"),
                None => fail!("{what}: no answer, {byte:#x} expected"),
            }
        }
        Ok(())
    };
    i8042::command(command::SELF_TEST);
    expect("self-test", &[0x55])?;
    i8042::command(command::TEST_KEYBOARD);
    expect("keyboard wires", &[0])?;
    i8042::configure(0);
    i8042::command(command::READ_CONFIG);
    // The self-test may have disabled both ports in the configuration byte; the commands below enable them.
    let Some(_) = i8042::read() else { fail!("the configuration byte can't be read") };
    i8042::command(command::ENABLE_KEYBOARD);
    i8042::write(0xff);
    expect("keyboard reset", &[0xfa, 0xaa])?;
    i8042::write(0xf5);
    expect("keyboard stop", &[0xfa])?;
    i8042::write(0xf2);
    expect("keyboard identity", &[0xfa, 0xab, 0x83])?;
    i8042::command(command::ENABLE_AUX);
    i8042::write_aux(0xff);
    let mouse = match i8042::read() {
        Some(0xfa) => {
            expect("mouse reset", &[0xaa, 0x00])?;
            i8042::write_aux(0xf2);
            expect("mouse identity", &[0xfa, 0x00])?;
            "mouse"
        }
        _ => "no mouse",
    };
    let mut interrupts = "interrupts not tried";
    if let Some(apic) = IoApic::find(machine) {
        let (keyboard, aux) = (VECTOR_IOAPIC + 1, VECTOR_IOAPIC + 5);
        let before = [trap::count(keyboard), trap::count(aux)];
        apic.route(1, keyboard);
        apic.route(12, aux);
        i8042::configure(config::KEYBOARD_IRQ | config::AUX_IRQ);
        i8042::write(0xee);
        let irq1 = time::wait_for(PATIENCE_MICROS, || trap::count(keyboard) != before[0]);
        i8042::drain();
        let mut irq12 = true;
        if mouse == "mouse" {
            i8042::write_aux(0xf2);
            irq12 = time::wait_for(PATIENCE_MICROS, || trap::count(aux) != before[1]);
            time::sleep_micros(1000);
        }
        i8042::drain();
        i8042::configure(0);
        apic.mask(1);
        apic.mask(12);
        ensure!(irq1, "the keyboard does not raise IRQ 1");
        ensure!(irq12, "the mouse does not raise IRQ 12");
        interrupts = "IRQ 1 and 12";
    }
    i8042::write(0xf4);
    expect("keyboard start", &[0xfa])?;
    Ok(text!("self-test, keyboard, {mouse}, {interrupts}"))
}

const TEXT_MEMORY: u64 = 0xb_8000;
const TEXT_BYTES: u64 = 0x8000;

/// Text memory keeps characters once text mode is set.
pub fn vga_text(machine: &Machine, index: usize) -> Outcome {
    let present = machine.pci.class(dispi::CLASS_VGA).next().is_some();
    let Some(memory) = Mmio::at(TEXT_MEMORY, TEXT_BYTES).filter(|_| index == 0 && present) else {
        return Err(Failure::Absent);
    };
    // Colour text at B8000: miscellaneous output, then sequencer and graphics controller (IBM VGA manual).
    outb(0x3c2, 0x67);
    for (register, value) in [(2, 3), (4, 2)] {
        outb(0x3c4, register);
        outb(0x3c5, value);
    }
    for (register, value) in [(5, 0x10), (6, 0x0e)] {
        outb(0x3ce, register);
        outb(0x3cf, value);
    }
    let line = b"probe: VGA text";
    let cells = || line.iter().enumerate().map(|(column, &byte)| (2 * column as u64, 0x0700 | u16::from(byte)));
    cells().for_each(|(offset, cell)| memory.write16(offset, cell));
    for (offset, cell) in cells() {
        let read = memory.read16(offset);
        ensure!(read == cell, "the cell at {:#x} reads {read:#x} instead of {cell:#x}", TEXT_MEMORY + offset);
    }
    outb(0x3d4, 0x0f);
    outb(0x3d5, 0x12);
    ensure!(inb(0x3d5) == 0x12, "the CRT controller does not keep its cursor");
    Ok(text!("{} cells at {TEXT_MEMORY:#x}", line.len()))
}

/// A mode is set, and the linear frame buffer keeps pixels.
pub fn bochs_display(machine: &Machine, index: usize) -> Outcome {
    const WIDTH: u16 = 640;
    const HEIGHT: u16 = 480;
    let function = dispi::find(&machine.pci).filter(|_| index == 0).ok_or(Failure::Absent)?;
    let id = dispi::read(dispi::register::ID);
    let Some(frame) = dispi::frame_buffer(function) else { fail!("BAR 0 is not there") };
    let memory = u64::from(dispi::read(dispi::register::MEMORY)) * 65536;
    ensure!(memory == frame.len(), "the interface says {memory} bytes of memory, BAR 0 has {}", frame.len());
    dispi::set_mode(WIDTH, HEIGHT);
    let mode = [dispi::register::WIDTH, dispi::register::HEIGHT, dispi::register::DEPTH].map(dispi::read);
    ensure!(mode == [WIDTH, HEIGHT, 32], "the mode reads back as {mode:?}");
    let bytes = u64::from(WIDTH) * u64::from(HEIGHT) * 4;
    let offsets =
        || [0, 4, 4096, bytes / 2, bytes - 4].into_iter().zip([0xff_8000u32, 0xff, 0x55aa55, 0xaa55aa, 0xffffff]);
    offsets().for_each(|(offset, pixel)| frame.write32(offset, pixel));
    for (offset, pixel) in offsets() {
        let read = frame.read32(offset);
        ensure!(read == pixel, "the pixel at byte {offset} reads {read:#x} instead of {pixel:#x}");
    }
    dispi::disable();
    Ok(text!("id {id:#x}, {WIDTH}x{HEIGHT}x32, {} KiB at {:#x}", memory / 1024, frame.address()))
}
