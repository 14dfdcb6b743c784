//! Application processors: started by INIT and start-up IPIs, put to work under one lock, answering IPIs.

use crate::dma::Dma;
use crate::drivers::lapic;
use crate::report::Outcome;
use crate::trap::VECTOR_IPI;
use crate::{cpu, ensure, fail, time, trap};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Most processors besides the first that the descriptor table has room for.
pub const MAX_AP: usize = 63;
/// Where the trampoline goes, and its arguments: slot, TSS selector, CPL 0 stack, CPL 3 stack (boot.s).
const TRAMPOLINE: u64 = 0x8000;
const ARGUMENTS: u64 = 0x8008;
/// First descriptor for a TSS of an application processor.
const FIRST_TSS: usize = 8;
const TSS_BYTES: usize = 0x68 + 0x2000 + 1;
const KERNEL_STACK_BYTES: usize = 4096;
const STACK_BYTES: usize = 32 * 1024;
/// Generous: many processors may share few of the host's, which is busy with others.
const PATIENCE_MICROS: u64 = 60_000_000;
/// What each processor adds to the shared counter.
pub const INCREMENTS: u64 = 20_000;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static mut gdt: [u64; FIRST_TSS + 2 * MAX_AP];
}

static ONLINE: AtomicU32 = AtomicU32::new(0);
/// APIC ids of the processors that are online, by slot.
static APIC_IDS: [AtomicU32; MAX_AP + 1] = [const { AtomicU32::new(0) }; MAX_AP + 1];
static WORK: AtomicU32 = AtomicU32::new(0);
static WORKED: AtomicU32 = AtomicU32::new(0);
static PINGED: AtomicU32 = AtomicU32::new(0);
static PONG: [AtomicU32; MAX_AP + 1] = [const { AtomicU32::new(0) }; MAX_AP + 1];
static BOOT_APIC_ID: AtomicU32 = AtomicU32::new(0);
static STARTED: AtomicBool = AtomicBool::new(false);

/// A spin lock around a plain counter. It does not serve in order: a virtual CPU whose turn it is may not be running.
struct Shared {
    locked: AtomicBool,
    counter: AtomicU64,
}

static SHARED: Shared = Shared { locked: AtomicBool::new(false), counter: AtomicU64::new(0) };

impl Shared {
    /// Adds by load and store, which only the lock makes safe.
    fn add(&self) -> bool {
        let free = || !self.locked.load(Ordering::Relaxed) && !self.locked.swap(true, Ordering::Acquire);
        let mine = free() || time::wait_for(PATIENCE_MICROS, free);
        if mine {
            self.counter.store(self.counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            self.locked.store(false, Ordering::Release);
        }
        mine
    }
}

/// Starts the processors with these APIC ids, one after another.
pub fn start(apic_ids: &[u8]) -> Outcome<()> {
    if STARTED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    BOOT_APIC_ID.store(u32::from(lapic::id()), Ordering::SeqCst);
    // SAFETY: the trampoline's bytes, copied to low memory that nothing else uses once the loader is done.
    unsafe {
        let start = &raw const trampoline;
        let length = (&raw const trampoline_end).offset_from(start) as usize;
        ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, length);
    }
    for (index, &apic_id) in apic_ids.iter().enumerate().take(MAX_AP) {
        let slot = index + 1;
        let selector = (FIRST_TSS + 2 * index) * 8;
        let kernel_stack = Dma::forever(KERNEL_STACK_BYTES);
        let stack = Dma::forever(STACK_BYTES);
        let tss = Dma::forever(TSS_BYTES);
        tss.write(4, kernel_stack.address() + KERNEL_STACK_BYTES as u64);
        tss.write(0x66, 0x68u16);
        let base = tss.address();
        let low = (TSS_BYTES as u64 - 1) | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        // SAFETY: this processor's own descriptor, and the trampoline's arguments: the one processor that reads them
        // is started below.
        unsafe {
            gdt[selector / 8] = low;
            gdt[selector / 8 + 1] = base >> 32;
            let arguments = ARGUMENTS as *mut u64;
            let stack_top = stack.address() + STACK_BYTES as u64;
            let kernel_stack_top = kernel_stack.address() + KERNEL_STACK_BYTES as u64;
            for (offset, value) in [slot as u64, selector as u64, kernel_stack_top, stack_top].into_iter().enumerate() {
                arguments.add(offset).write_volatile(value);
            }
        }
        cpu::fence();
        let online = || ONLINE.load(Ordering::SeqCst) == slot as u32;
        lapic::send_init(apic_id);
        time::sleep_micros(10_000);
        lapic::send_startup(apic_id, (TRAMPOLINE / 4096) as u8);
        // A second start-up IPI only if the first was not enough, as the manuals advise.
        if !time::wait_for(PATIENCE_MICROS / 60, online) {
            lapic::send_startup(apic_id, (TRAMPOLINE / 4096) as u8);
        }
        ensure!(time::wait_for(PATIENCE_MICROS, online), "the processor with APIC id {apic_id} does not start");
        let own = APIC_IDS[slot].load(Ordering::SeqCst);
        ensure!(own == u32::from(apic_id), "the processor with APIC id {apic_id} says that it has {own}");
    }
    Ok(())
}

/// Lets all processors add to one counter at once; returns its final value.
pub fn work_together() -> Outcome<u64> {
    let others = ONLINE.load(Ordering::SeqCst);
    SHARED.counter.store(0, Ordering::SeqCst);
    WORKED.store(0, Ordering::SeqCst);
    WORK.fetch_add(1, Ordering::SeqCst);
    wake_all();
    for _ in 0..INCREMENTS {
        ensure!(SHARED.add(), "the lock is stuck");
    }
    ensure!(
        time::wait_for(PATIENCE_MICROS, || WORKED.load(Ordering::SeqCst) == others),
        "{} of {others} processors ended their work",
        WORKED.load(Ordering::SeqCst)
    );
    Ok(SHARED.counter.load(Ordering::SeqCst))
}

fn wake_all() {
    for id in APIC_IDS.iter().skip(1).take(ONLINE.load(Ordering::SeqCst) as usize) {
        lapic::send_ipi(id.load(Ordering::SeqCst) as u8, VECTOR_IPI);
    }
}

/// Sends an interrupt to every processor and waits for theirs in return; returns the interrupts both ways.
pub fn ping() -> Outcome<u32> {
    let others = ONLINE.load(Ordering::SeqCst);
    let before = trap::count(VECTOR_IPI);
    let round = PINGED.fetch_add(1, Ordering::SeqCst) + 1;
    wake_all();
    for (slot, pong) in PONG.iter().enumerate().skip(1).take(others as usize) {
        if !time::wait_for(PATIENCE_MICROS, || pong.load(Ordering::SeqCst) == round) {
            fail!("processor {slot} does not answer an interrupt");
        }
    }
    // One at each of the others, and at least one back here: those that come while one is pending are one.
    let expected = others + u32::from(others > 0);
    ensure!(
        time::wait_for(PATIENCE_MICROS, || trap::count(VECTOR_IPI).wrapping_sub(before) >= expected),
        "{} of {expected} inter-processor interrupts arrived",
        trap::count(VECTOR_IPI).wrapping_sub(before)
    );
    Ok(expected)
}

/// An application processor's life, at CPL 3: wait for an interrupt, see what there is to do.
#[unsafe(no_mangle)]
extern "C" fn probe_ap_main(slot: u32) -> ! {
    lapic::enable();
    let mut worked = WORK.load(Ordering::SeqCst);
    let mut pinged = PINGED.load(Ordering::SeqCst);
    APIC_IDS[slot as usize].store(u32::from(lapic::id()), Ordering::SeqCst);
    ONLINE.store(slot, Ordering::SeqCst);
    loop {
        let seen = trap::total();
        if WORK.load(Ordering::SeqCst) != worked {
            worked = WORK.load(Ordering::SeqCst);
            if (0..INCREMENTS).all(|_| SHARED.add()) {
                WORKED.fetch_add(1, Ordering::SeqCst);
            }
        }
        if PINGED.load(Ordering::SeqCst) != pinged {
            pinged = PINGED.load(Ordering::SeqCst);
            lapic::send_ipi(BOOT_APIC_ID.load(Ordering::SeqCst) as u8, VECTOR_IPI);
            PONG[slot as usize].store(pinged, Ordering::SeqCst);
        }
        cpu::idle(seen);
    }
}
