//! A boot sector that does what a script behind it on the disk says: video BIOS calls, ports, bytes in memory. A test
//! writes the script, and knows what it comes to (tests/tests/vga.rs).
#![no_std]
#![no_main]

core::arch::global_asm!(include_str!("script.s"));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
