//! The probe: a bare-metal x86-64 guest that tests, measures and demonstrates the machine it runs on (docs/probe.md).
//!
//! One program, three uses: the device self-test of the project's own tests, the benchmark guest that is run side by
//! side on other monitors, and the demo guest. It is entered through PVH (`boot.s`), and runs at CPL 3 with every
//! privilege it needs for ports and device memory.
#![no_std]
#![no_main]
// There is no heap: failures carry their text, and variants their devices, by value.
#![allow(clippy::result_large_err, clippy::large_enum_variant)]

mod acpi;
mod bench;
mod boot;
mod cpu;
mod crc;
mod demo;
mod dma;
mod drivers;
mod machine;
mod memory;
mod power;
mod random;
mod report;
mod smp;
mod tests;
mod text;
mod tick;
mod time;
mod trap;
mod watch;

use machine::Machine;

core::arch::global_asm!(include_str!("boot.s"));
core::arch::global_asm!(include_str!("trap.s"));

/// First Rust code, at CPL 3: `start_info` is the PVH structure of the loader.
#[unsafe(no_mangle)]
extern "C" fn probe_main(start_info: u32) -> ! {
    trap::init();
    memory::map_low();
    let machine = Machine::discover(start_info);
    let words = machine.words;
    let mut summary = report::Summary::new();
    let demo = words.has("demo");
    if let Some(names) = words.value("test").or(demo.then_some(tests::DEMO)) {
        tests::run(&machine, names, &mut summary);
    }
    if let Some(names) = words.value("bench") {
        bench::run(&machine, names, &mut summary);
    }
    println!("probe: done {summary}");
    if demo {
        demo::run(&machine, &summary);
    }
    match words.value("then") {
        Some("reboot") => match words.value("by") {
            Some(way) => power::reset_by(&machine, way),
            None => power::reset(),
        },
        Some("watch") => watch::run(&machine),
        Some("tick") => tick::run(&machine),
        Some("idle") => loop {
            cpu::idle(trap::total());
        },
        _ => power::off(),
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("probe: panic: {info}");
    power::off()
}

/// The precompiled `core` names this function in its unwind tables, which the link script drops.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
