//! The boot sector of the probe's disk image: loads the probe with the BIOS, and enters it as a PVH loader does.
#![no_std]
#![no_main]

core::arch::global_asm!(include_str!("loader.s"));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
