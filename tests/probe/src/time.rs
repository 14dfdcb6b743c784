//! Time: the TSC, calibrated once against the ACPI PM timer or the PIT.

use crate::cpu::{self, inb, inl, outb, tsc};
use core::sync::atomic::{AtomicU64, Ordering};

/// ACPI PM timer of a q35 machine, and its rate.
pub const PM_TIMER: u16 = 0x608;
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The bits that it has.
pub const PM_TIMER_MASK: u32 = 0xff_ffff;
/// The PIT's rate.
pub const PIT_HZ: u64 = 1_193_182;
/// How long a calibration takes.
const CALIBRATION_MICROS: u64 = 10_000;

/// TSC ticks per millisecond; a guess until [`calibrate`] ran, high so that timeouts are rather long than short.
static TSC_KHZ: AtomicU64 = AtomicU64::new(3_000_000);

/// The clock that the TSC was measured with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reference {
    /// ACPI PM timer.
    PmTimer,
    /// 8254 channel 2.
    Pit,
    /// Neither moved: the TSC is taken for 3 GHz.
    None,
}

/// Measures the TSC.
pub fn calibrate() -> Reference {
    let start = tsc();
    if let Some(ticks) = pm_timer_interval(CALIBRATION_MICROS) {
        TSC_KHZ.store((tsc() - start) * PM_TIMER_HZ / ticks / 1000, Ordering::Relaxed);
        return Reference::PmTimer;
    }
    if let Some(khz) = pit_calibration() {
        TSC_KHZ.store(khz, Ordering::Relaxed);
        return Reference::Pit;
    }
    Reference::None
}

/// TSC ticks per millisecond.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// Microseconds since the TSC was zero.
pub fn micros() -> u64 {
    // In 128 bits: a host's TSC may be years old.
    (u128::from(tsc()) * 1000 / u128::from(tsc_khz())) as u64
}

/// Waits until `done` or `micros` have passed; says whether it was done.
pub fn wait_for(micros: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = tsc();
    let ticks = micros * tsc_khz() / 1000;
    loop {
        if done() {
            return true;
        }
        if tsc().wrapping_sub(start) > ticks {
            return done();
        }
        core::hint::spin_loop();
    }
}

/// Busy-waits.
pub fn sleep_micros(micros: u64) {
    wait_for(micros, || false);
}

/// The PM timer's 24 bits.
pub fn pm_timer() -> u32 {
    inl(PM_TIMER) & PM_TIMER_MASK
}

/// Waits for about `micros` on the PM timer and returns the ticks that really passed; none if it does not move.
fn pm_timer_interval(micros: u64) -> Option<u64> {
    if inl(PM_TIMER) == u32::MAX {
        return None;
    }
    let wanted = micros * PM_TIMER_HZ / 1_000_000;
    let start = pm_timer();
    let mut last = start;
    let mut same = 0;
    loop {
        let now = pm_timer();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        let passed = u64::from(now.wrapping_sub(start) & PM_TIMER_MASK);
        if passed >= wanted {
            return Some(passed);
        }
        if same > 10_000 {
            return None;
        }
    }
}

/// Programs PIT channel 2 for one shot of about `micros`; its output then shows in port 0x61 bit 5.
pub fn pit_one_shot(micros: u64) {
    let count = (micros * PIT_HZ / 1_000_000).min(0xffff) as u16;
    outb(0x61, inb(0x61) & !3);
    outb(0x43, 0xb0); // channel 2, both bytes, mode 0: output goes high at the terminal count
    outb(0x42, count as u8);
    outb(0x42, (count >> 8) as u8);
    outb(0x61, (inb(0x61) & !2) | 1);
}

/// Lets PIT channel 2 count freely, see [`pit_count`].
pub fn pit_count_freely() {
    outb(0x61, inb(0x61) & !3);
    outb(0x43, 0xb4); // channel 2, both bytes, mode 2: from 65536 down, again and again
    outb(0x42, 0);
    outb(0x42, 0);
    outb(0x61, (inb(0x61) & !2) | 1);
}

/// How many ticks of the PIT have passed since [`pit_count_freely`], modulo 65536.
pub fn pit_count() -> u16 {
    outb(0x43, 0x80); // latch channel 2
    let low = inb(0x42);
    0u16.wrapping_sub(u16::from_le_bytes([low, inb(0x42)]))
}

/// Whether the one shot of [`pit_one_shot`] has ended.
pub fn pit_output() -> bool {
    inb(0x61) & 0x20 != 0
}

fn pit_calibration() -> Option<u64> {
    if inb(0x61) == 0xff {
        return None;
    }
    pit_one_shot(CALIBRATION_MICROS);
    let start = tsc();
    for _ in 0..1_000_000 {
        if pit_output() {
            return Some((tsc() - start) * 1000 / CALIBRATION_MICROS);
        }
        cpu::fence();
    }
    None
}
