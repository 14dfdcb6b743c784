//! The few instructions that Rust has no words for: port I/O, time stamp, idling; and memory functions.

use core::arch::{asm, global_asm};

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads an I/O port.
        pub fn $read(port: u16) -> $type {
            let value;
            // SAFETY: the probe owns the whole machine; a port read changes devices only, never Rust's memory.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack)) };
            value
        }

        /// Writes an I/O port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: as for reads; devices that are told to write memory are given `dma` memory.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack)) };
        }
    };
}

port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

unsafe extern "C" {
    /// trap.s: waits in CPL 0.
    safe fn cpu_idle(seen: u32);
    /// trap.s: resets by a fault without a handler.
    safe fn cpu_triple_fault() -> !;
}

/// Sleeps until an interrupt arrives on this CPU, unless one did since `seen` was read from `trap::total`.
pub fn idle(seen: u32) {
    cpu_idle(seen);
}

/// Stops this CPU for good by a fault that has no handler: the machine resets.
pub fn triple_fault() -> ! {
    cpu_triple_fault()
}

/// Orders memory accesses towards devices and other CPUs.
pub fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

// What the compiler calls for copies and comparisons; `rep` instructions are the fast way on every CPU of interest.
global_asm!(
    ".global memcpy, memset, memmove, memcmp, bcmp",
    "memcpy:",
    "  mov rax, rdi",
    "  mov rcx, rdx",
    "  rep movsb",
    "  ret",
    "memset:",
    "  mov r8, rdi",
    "  mov eax, esi",
    "  mov rcx, rdx",
    "  rep stosb",
    "  mov rax, r8",
    "  ret",
    "memmove:",
    "  mov rax, rdi",
    "  mov rcx, rdx",
    "  mov r8, rdi",
    "  sub r8, rsi",
    "  cmp r8, rdx",
    "  jb 1f",
    "  rep movsb",
    "  ret",
    "1: lea rsi, [rsi + rdx - 1]",
    "  lea rdi, [rdi + rdx - 1]",
    "  std",
    "  rep movsb",
    "  cld",
    "  ret",
    "memcmp:",
    "bcmp:",
    "  xor eax, eax",
    "  test rdx, rdx",
    "  jz 2f",
    "3: movzx eax, byte ptr [rdi]",
    "  movzx ecx, byte ptr [rsi]",
    "  sub eax, ecx",
    "  jnz 2f",
    "  inc rdi",
    "  inc rsi",
    "  dec rdx",
    "  jnz 3b",
    "2: ret",
);
