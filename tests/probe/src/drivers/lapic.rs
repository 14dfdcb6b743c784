//! The local APIC in xAPIC mode, at its usual address.

use crate::dma::Mmio;
use crate::time;
use crate::trap::VECTOR_SPURIOUS;

const ADDRESS: u64 = 0xfee0_0000;
/// Register offsets.
const ID: u64 = 0x20;
const VERSION: u64 = 0x30;
const SPURIOUS: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_LINT0: u64 = 0x350;
const LVT_TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

const ENABLE: u32 = 0x100;
const ICR_PENDING: u32 = 1 << 12;
const ICR_LEVEL_ASSERT: u32 = 1 << 14;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
const TIMER_PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DELIVER_EXTINT: u32 = 7 << 8;
/// Divide by 1.
const DIVIDE_1: u32 = 0xb;

fn registers() -> Mmio {
    // Below 4 GiB: mapped from the start.
    Mmio::at(ADDRESS, 0x1000).unwrap_or_else(|| unreachable!("the local APIC is below 4 GiB"))
}

/// Enables this CPU's local APIC; false if there is none.
pub fn enable() -> bool {
    let apic = registers();
    if apic.read32(VERSION) == u32::MAX {
        return false;
    }
    apic.write32(SPURIOUS, ENABLE | u32::from(VECTOR_SPURIOUS));
    true
}

/// Lets the 8259 pair's interrupts through to this CPU, or not.
pub fn accept_pic(accept: bool) {
    registers().write32(LVT_LINT0, if accept { DELIVER_EXTINT } else { MASKED });
}

/// This CPU's APIC id.
pub fn id() -> u8 {
    (registers().read32(ID) >> 24) as u8
}

/// Version register.
pub fn version() -> u32 {
    registers().read32(VERSION)
}

/// The MSI address that reaches this CPU.
pub fn msi_address() -> u32 {
    0xfee0_0000 | u32::from(id()) << 12
}

fn command(destination: u8, low: u32) -> bool {
    let apic = registers();
    apic.write32(ICR_HIGH, u32::from(destination) << 24);
    apic.write32(ICR_LOW, low);
    time::wait_for(100_000, || apic.read32(ICR_LOW) & ICR_PENDING == 0)
}

/// Sends a fixed interrupt to a CPU.
pub fn send_ipi(destination: u8, vector: u8) -> bool {
    command(destination, ICR_LEVEL_ASSERT | u32::from(vector))
}

/// INIT.
pub fn send_init(destination: u8) -> bool {
    command(destination, ICR_LEVEL_ASSERT | ICR_INIT)
}

/// Start-up at page `page` (address / 4096).
pub fn send_startup(destination: u8, page: u8) -> bool {
    command(destination, ICR_LEVEL_ASSERT | ICR_STARTUP | u32::from(page))
}

/// Starts the timer, divided by 1: one shot, or periodic.
pub fn start_timer(vector: u8, count: u32, periodic: bool) {
    let apic = registers();
    apic.write32(TIMER_DIVIDE, DIVIDE_1);
    apic.write32(LVT_TIMER, u32::from(vector) | if periodic { TIMER_PERIODIC } else { 0 });
    apic.write32(TIMER_INITIAL, count);
}

/// Stops the timer.
pub fn stop_timer() {
    let apic = registers();
    apic.write32(LVT_TIMER, MASKED);
    apic.write32(TIMER_INITIAL, 0);
}

/// Timer ticks per millisecond, measured against the TSC over `micros`.
pub fn timer_khz(micros: u64) -> u64 {
    let apic = registers();
    apic.write32(TIMER_DIVIDE, DIVIDE_1);
    apic.write32(LVT_TIMER, MASKED);
    apic.write32(TIMER_INITIAL, u32::MAX);
    let start = time::micros();
    time::sleep_micros(micros);
    let ticks = u64::from(u32::MAX - apic.read32(TIMER_CURRENT));
    let passed = (time::micros() - start).max(1);
    apic.write32(TIMER_INITIAL, 0);
    ticks * 1000 / passed
}
