//! The interrupt descriptor table, interrupt counters, vectors, and the report of a CPU exception (`trap.s`).

use crate::{power, println};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The 8259 pair's first vector (IRQ 0–15 follow).
pub const VECTOR_PIC: u8 = 0x20;
/// The local APIC's timer.
pub const VECTOR_TIMER: u8 = 0x30;
/// Inter-processor interrupts.
pub const VECTOR_IPI: u8 = 0x31;
/// First I/O APIC vector under test.
pub const VECTOR_IOAPIC: u8 = 0x38;
/// First vector handed out for MSI and MSI-X.
const VECTOR_MSI: u8 = 0x40;
const VECTOR_MSI_END: u8 = 0xf0;
/// Invalid opcode: how CPL 3 asks for what only CPL 0 can do.
const VECTOR_INVALID_OPCODE: usize = 6;
/// The local APIC's spurious vector.
pub const VECTOR_SPURIOUS: u8 = 0xff;

/// Bytes between the entries of `trap_stubs`.
const STUB_BYTES: u64 = 16;
const CODE0: u64 = 0x08;
const GATE_PRESENT: u64 = 1 << 47;
const GATE_INTERRUPT: u64 = 0xe << 40;

#[repr(C)]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written once by the boot processor before any other runs.
unsafe impl Sync for Idt {}

unsafe extern "C" {
    static idt: Idt;
    static trap_stubs: u8;
    static invalid_opcode: u8;
    static irq_counts: [AtomicU32; 256];
    static irq_total: AtomicU32;
    /// Vector, error code, rip, rsp, cr2, cs.
    static fault_record: [AtomicU64; 6];
}

/// Fills the descriptor table; the boot code has loaded its address.
pub fn init() {
    let gate = |address: u64| {
        let low = (address & 0xffff) | CODE0 << 16 | (address & 0xffff_0000) << 32;
        [low | GATE_PRESENT | GATE_INTERRUPT, address >> 32]
    };
    // SAFETY: the symbols are those of boot.s and trap.s; nobody else touches the table, and the CPU reads it only on
    // interrupts, which are masked at their sources until here.
    unsafe {
        let table = idt.0.get();
        for vector in 0..256 {
            (*table)[vector] = gate(&raw const trap_stubs as u64 + vector as u64 * STUB_BYTES);
        }
        (*table)[VECTOR_INVALID_OPCODE] = gate(&raw const invalid_opcode as u64);
    }
    crate::cpu::fence();
}

/// How many interrupts vector `vector` has seen, on all CPUs.
pub fn count(vector: u8) -> u32 {
    // SAFETY: a table of atomics in trap.s.
    unsafe { irq_counts[usize::from(vector)].load(Ordering::SeqCst) }
}

/// How many interrupts all vectors have seen.
pub fn total() -> u32 {
    // SAFETY: an atomic in trap.s.
    unsafe { irq_total.load(Ordering::SeqCst) }
}

/// A vector of its own for one interrupt source; they are plenty, but wrap rather than run out.
pub fn allocate_vector() -> u8 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % u32::from(VECTOR_MSI_END - VECTOR_MSI);
    VECTOR_MSI + next as u8
}

/// Called by trap.s at CPL 3 after an exception.
#[unsafe(no_mangle)]
extern "C" fn probe_fault() -> ! {
    // SAFETY: a table of atomics in trap.s.
    let [vector, error, rip, rsp, cr2, cs] = unsafe { &fault_record }.each_ref().map(|v| v.load(Ordering::SeqCst));
    println!("probe: exception {vector} error {error:#x} at {cs:#x}:{rip:#x}, rsp {rsp:#x}, cr2 {cr2:#x}");
    power::off()
}
