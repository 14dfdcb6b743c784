//! The self-test: a table of tests, one file for each device.

pub mod ahci;
mod balloon;
mod blk;
mod console;
mod cpu;
mod firmware;
mod gpu;
mod input;
mod legacy;
mod net;
mod nvme;
mod rng;
mod timers;
mod tpm;

use crate::machine::Machine;
use crate::report::{Failure, Outcome, Summary};
use crate::{dma, println};

/// A test of the `index`th device of its kind.
type Test = fn(&Machine, usize) -> Outcome;

/// All tests, in the order they run.
const TESTS: &[(&str, Test)] = &[
    ("cpu", cpu::cpu),
    ("memory", cpu::memory),
    ("lapic", timers::local_apic),
    ("ioapic", timers::io_apic),
    ("pic", timers::pic),
    ("pm-timer", timers::pm_timer),
    ("rtc", timers::rtc),
    ("smp", cpu::smp),
    ("fw_cfg", firmware::fw_cfg),
    ("acpi", firmware::acpi),
    ("generation", firmware::generation),
    ("debug-port", firmware::debug_port),
    ("serial", legacy::serial),
    ("i8042", legacy::keyboard_controller),
    ("pci", cpu::pci),
    ("vga-text", legacy::vga_text),
    ("dispi", legacy::bochs_display),
    ("rng", rng::test),
    ("balloon", balloon::test),
    ("blk", blk::test),
    ("blk-pattern", blk::pattern),
    ("net", net::test),
    ("console", console::test),
    ("input", input::test),
    ("gpu", gpu::test),
    ("cdrom", ahci::cdrom),
    ("disk", ahci::disk),
    ("disk-pattern", ahci::pattern),
    ("nvme", nvme::test),
    ("nvme-pattern", nvme::pattern),
    ("tpm", tpm::test),
    ("input-echo", input::echo),
    ("ps2-echo", input::ps2_echo),
];

/// What the demo runs unless it is told otherwise: the quick ones. They leave disks alone (see `machine.may_write`).
pub const DEMO: &str = "cpu,memory,lapic,ioapic,smp,acpi,pci,rng,blk,net,console,input,gpu,cdrom,disk,nvme";

/// Runs the tests named in a comma-separated list, or `all`.
pub fn run(machine: &Machine, names: &str, summary: &mut Summary) {
    for name in names.split(',').filter(|name| *name != "all" && TESTS.iter().all(|(known, _)| known != name)) {
        println!("probe: no test is called {name}");
    }
    for (name, test) in TESTS {
        if !names.split(',').any(|wanted| wanted == "all" || wanted == *name) {
            continue;
        }
        // One line for each device of the kind, or a single one that says it is absent.
        for index in 0.. {
            let mark = dma::mark();
            let outcome = test(machine, index);
            dma::release(mark);
            let absent = matches!(outcome, Err(Failure::Absent));
            if index == 0 || !absent {
                summary.test(name, index, &outcome);
            }
            if absent {
                break;
            }
        }
    }
}
