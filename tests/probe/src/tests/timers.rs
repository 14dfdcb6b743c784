//! Timers and interrupt controllers: local APIC, PIT through PIC and I/O APIC, PM timer, real-time clock.

use crate::cpu::{inb, outb};
use crate::drivers::io_apic::IoApic;
use crate::drivers::lapic;
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::trap::{VECTOR_IOAPIC, VECTOR_IPI, VECTOR_PIC, VECTOR_TIMER};
use crate::{cpu, ensure, fail, text, time, trap};

const PATIENCE_MICROS: u64 = 5_000_000;
const PIC_MASTER: u16 = 0x20;
const PIC_SLAVE: u16 = 0xa0;
const RTC_INDEX: u16 = 0x70;
const RTC_DATA: u16 = 0x71;

/// Waits idle, so that the interrupt has to wake the CPU, until the vector has been seen `times` more.
fn sleep_until(vector: u8, before: u32, times: u32) -> bool {
    let start = time::micros();
    loop {
        let seen = trap::total();
        if trap::count(vector).wrapping_sub(before) >= times {
            return true;
        }
        if time::micros() - start > PATIENCE_MICROS {
            return false;
        }
        cpu::idle(seen);
    }
}

/// Like [`sleep_until`], busy: for sources that may be dead, which would never wake the CPU.
fn arrives(vector: u8, before: u32, times: u32) -> bool {
    time::wait_for(PATIENCE_MICROS, || trap::count(vector).wrapping_sub(before) >= times)
}

/// One shot, periodic, waking from idle, and an interrupt to oneself.
pub fn local_apic(_: &Machine, index: usize) -> Outcome {
    if index > 0 || lapic::version() == u32::MAX {
        return Err(Failure::Absent);
    }
    let khz = lapic::timer_khz(10_000);
    ensure!(khz > 0, "the timer does not count");
    let milliseconds = |count: u64| (khz * count).min(u64::from(u32::MAX)) as u32;
    let before = trap::count(VECTOR_TIMER);
    lapic::start_timer(VECTOR_TIMER, milliseconds(2), false);
    ensure!(arrives(VECTOR_TIMER, before, 1), "the one-shot timer does not fire");
    lapic::start_timer(VECTOR_TIMER, milliseconds(2), true);
    let woken = arrives(VECTOR_TIMER, before, 2) && sleep_until(VECTOR_TIMER, before, 6);
    lapic::stop_timer();
    ensure!(woken, "the periodic timer fired {} times", trap::count(VECTOR_TIMER).wrapping_sub(before));
    let before = trap::count(VECTOR_IPI);
    lapic::send_ipi(lapic::id(), VECTOR_IPI);
    ensure!(arrives(VECTOR_IPI, before, 1), "an interrupt to oneself does not arrive");
    Ok(text!("version {:#x}, timer {} MHz, one shot, periodic, idle, IPI", lapic::version() & 0xff, khz / 1000))
}

fn start_pit(hertz: u64) {
    let divisor = (time::PIT_HZ / hertz) as u16;
    outb(0x43, 0x34); // channel 0, both bytes, mode 2
    outb(0x40, divisor as u8);
    outb(0x40, (divisor >> 8) as u8);
}

/// PIT interrupts through the 8259 pair.
pub fn pic(_: &Machine, index: usize) -> Outcome {
    if index > 0 || (inb(0x61) == 0xff && inb(PIC_MASTER + 1) == 0xff) {
        return Err(Failure::Absent);
    }
    // Initialisation unmasks all inputs for a moment, with the vectors of before.
    lapic::accept_pic(false);
    // Initialisation words: edge, cascade, vectors, wiring, 8086 mode.
    for (port, vector, wiring) in [(PIC_MASTER, VECTOR_PIC, 4), (PIC_SLAVE, VECTOR_PIC + 8, 2)] {
        outb(port, 0x11);
        outb(port + 1, vector);
        outb(port + 1, wiring);
        outb(port + 1, 1);
        outb(port + 1, 0xff);
    }
    ensure!(inb(PIC_MASTER + 1) == 0xff, "the interrupt mask does not keep its value");
    lapic::accept_pic(true);
    let before = trap::count(VECTOR_PIC);
    start_pit(1000);
    outb(PIC_MASTER + 1, 0xfe);
    let arrived = arrives(VECTOR_PIC, before, 5);
    outb(PIC_MASTER + 1, 0xff);
    time::sleep_micros(2000);
    lapic::accept_pic(false);
    ensure!(arrived, "{} of 5 timer interrupts arrived", trap::count(VECTOR_PIC).wrapping_sub(before));
    Ok(text!("5 timer interrupts through the PIC"))
}

/// PIT interrupts through the I/O APIC, and silence when masked.
pub fn io_apic(machine: &Machine, index: usize) -> Outcome {
    let Some(apic) = IoApic::find(machine).filter(|_| index == 0) else { return Err(Failure::Absent) };
    if inb(0x61) == 0xff {
        return Ok(text!("{} inputs, no PIT to try them with", apic.pins()));
    }
    let vector = VECTOR_IOAPIC;
    let before = trap::count(vector);
    start_pit(1000);
    apic.route(apic.pit, vector);
    let arrived = arrives(vector, before, 5);
    apic.mask(apic.pit);
    ensure!(
        arrived,
        "{} of 5 timer interrupts arrived on input {}",
        trap::count(vector).wrapping_sub(before),
        apic.pit
    );
    time::sleep_micros(2000);
    let masked = trap::count(vector);
    time::sleep_micros(5000);
    ensure!(trap::count(vector) == masked, "interrupts arrive though the input is masked");
    Ok(text!("{} inputs, 5 timer interrupts on input {}", apic.pins(), apic.pit))
}

/// The PM timer and the PIT at one moment, in ticks of each; none when the two cannot be read close together.
fn both_timers() -> Option<(u32, u16)> {
    /// Half a millisecond, for two exits to a slow host and a few more.
    const CLOSE: u32 = (time::PM_TIMER_HZ / 2000) as u32;
    // The CPU may lose its host's attention between two reads: then they are read again.
    (0..10_000).find_map(|_| {
        let (before, pit, after) = (time::pm_timer(), time::pit_count(), time::pm_timer());
        let apart = after.wrapping_sub(before) & time::PM_TIMER_MASK;
        (apart < CLOSE).then_some(((before + apart / 2) & time::PM_TIMER_MASK, pit))
    })
}

/// Monotonic, and at its rate as measured by the PIT: however long it takes from one look at the two to the next, both
/// must have moved by the same time.
pub fn pm_timer(_: &Machine, index: usize) -> Outcome {
    const INTERVAL_MICROS: u64 = 20_000;
    /// What both looks together may be off.
    const OFF_MICROS: u64 = 1_000;
    if index > 0 || cpu::inl(time::PM_TIMER) == u32::MAX {
        return Err(Failure::Absent);
    }
    let mut last = time::pm_timer();
    for _ in 0..1000 {
        let now = time::pm_timer();
        ensure!(now.wrapping_sub(last) & time::PM_TIMER_MASK < 0x80_0000, "it went back from {last:#x} to {now:#x}");
        last = now;
    }
    if inb(0x61) == 0xff {
        return Ok(text!("monotonic; no PIT to compare it with"));
    }
    time::pit_count_freely();
    let Some((start, pit_start)) = both_timers() else { fail!("it cannot be read together with the PIT") };
    let passed = || u64::from(time::pm_timer().wrapping_sub(start) & time::PM_TIMER_MASK);
    let wanted = INTERVAL_MICROS * time::PM_TIMER_HZ / 1_000_000;
    ensure!(time::wait_for(PATIENCE_MICROS, || passed() >= wanted), "it does not move");
    let Some((end, pit_end)) = both_timers() else { fail!("it cannot be read together with the PIT") };
    let ticks = u64::from(end.wrapping_sub(start) & time::PM_TIMER_MASK);
    let expected = (ticks * time::PIT_HZ / time::PM_TIMER_HZ) as u16;
    let off = pit_end.wrapping_sub(pit_start).wrapping_sub(expected);
    let off_micros = u64::from(off.min(off.wrapping_neg())) * 1_000_000 / time::PIT_HZ;
    let micros = ticks * 1_000_000 / time::PM_TIMER_HZ;
    ensure!(off_micros <= OFF_MICROS, "it is {off_micros} us away from the PIT after {micros} us");
    Ok(text!("with the PIT to {off_micros} us in {micros} us"))
}

fn cmos(index: u8) -> u8 {
    outb(RTC_INDEX, index);
    inb(RTC_DATA)
}

/// The clock shows a possible time, and moves on with its update flag.
pub fn rtc(_: &Machine, index: usize) -> Outcome {
    if index > 0 || (cmos(0x0d) == 0xff && cmos(0x0a) == 0xff) {
        return Err(Failure::Absent);
    }
    ensure!(cmos(0x0d) & 0x80 != 0, "register D says the clock has lost power");
    let status_b = cmos(0x0b);
    let read = || {
        // Not while an update is in progress.
        time::wait_for(PATIENCE_MICROS, || cmos(0x0a) & 0x80 == 0);
        [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32].map(cmos)
    };
    let decode = |value: u8| if status_b & 4 != 0 { value } else { (value >> 4) * 10 + (value & 15) };
    let [second, minute, hour, day, month, year, century] = {
        let raw = read();
        ensure!(
            status_b & 4 != 0 || raw.iter().all(|v| v & 15 < 10),
            "the clock is not in BCD though register B says so"
        );
        raw.map(decode)
    };
    let plausible = second < 60 && minute < 60 && (1..=31).contains(&day) && (1..=12).contains(&month) && year < 100;
    ensure!(plausible, "the clock shows {year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
    let moved = time::wait_for(PATIENCE_MICROS, || decode(read()[0]) != second);
    ensure!(moved, "the seconds stay at {second}");
    Ok(text!("{century:02}{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}, ticking"))
}
