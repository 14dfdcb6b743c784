//! Processor, memory and the application processors.

use crate::acpi::Tables;
use crate::drivers::lapic;
use crate::machine::{Machine, e820};
use crate::memory;
use crate::report::{Failure, Outcome};
use crate::text::Text;
use crate::{dma, ensure, fail, smp, text, time};
use core::arch::x86_64::__cpuid;
use core::ptr;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Pages are tried at this distance, or further apart where there is more RAM than the probe maps.
const STEP: u64 = 32 * MIB;

/// CPUID makes sense (not more: under KVM_PVM, CPL 3 sees much of the host's), floating point computes, and the TSC moves forward.
pub fn cpu(machine: &Machine, index: usize) -> Outcome {
    if index > 0 {
        return Err(Failure::Absent);
    }
    let leaf0 = __cpuid(0);
    let mut vendor = [0; 12];
    for (chunk, register) in vendor.chunks_mut(4).zip([leaf0.ebx, leaf0.edx, leaf0.ecx]) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    let Ok(vendor) = core::str::from_utf8(&vendor) else { fail!("the vendor is not text") };
    ensure!(leaf0.eax >= 1, "CPUID ends at leaf {}", leaf0.eax);
    let leaf1 = __cpuid(1);
    ensure!(leaf1.edx & 1 << 9 != 0, "CPUID knows no local APIC");
    let hypervisor = if leaf1.ecx & 1 << 31 != 0 { "in a hypervisor" } else { "hides its hypervisor" };
    // black_box keeps the sum from being computed at compile time.
    let terms = core::hint::black_box(100_000u32);
    let series: f64 = (0..terms).map(|k| if k % 2 == 0 { 4.0 } else { -4.0 } / f64::from(2 * k + 1)).sum();
    let error = ((series - core::f64::consts::PI) * 1e6) as i64;
    ensure!(error.abs() < 100, "floating point computed pi with an error of {error} millionths");
    let first = time::micros();
    let forward = time::wait_for(1_000_000, || time::micros() > first);
    ensure!(forward, "the TSC does not move");
    Ok(text!("{vendor} {:#x}, {hypervisor}, TSC {} MHz by {:?}", leaf1.eax, time::tsc_khz() / 1000, machine.reference))
}

/// The memory map is sane, agrees with fw_cfg, and pages in all RAM keep what is written.
pub fn memory(machine: &Machine, index: usize) -> Outcome {
    if index > 0 {
        return Err(Failure::Absent);
    }
    let ranges = machine.map.ranges();
    ensure!(!ranges.is_empty(), "neither the loader nor fw_cfg gives a memory map");
    for (number, range) in ranges.iter().enumerate() {
        ensure!(range.base.checked_add(range.length).is_some(), "range {number} wraps");
        let clash = ranges[..number].iter().find(|other| {
            other.base < range.base + range.length && range.base < other.base + other.length && other.kind != range.kind
        });
        ensure!(clash.is_none(), "ranges at {:#x} overlap with different types", range.base);
    }
    let megabytes = machine.map.ram_bytes().div_ceil(MIB);
    if machine.fw_cfg {
        let other = e820().ram_bytes().div_ceil(MIB);
        ensure!(other == 0 || other.abs_diff(megabytes) <= 2, "the loader says {megabytes} MiB of RAM, fw_cfg {other}");
    }
    // A GiB of those that can be mapped is left for the last page of each range, and for devices.
    let most = memory::HIGH_DIRECTORIES as u64 - 8;
    let step = if megabytes * MIB <= most * GIB { STEP } else { megabytes.div_ceil(most * 1024) * GIB };
    let mut pages = 0;
    let mut high = 0;
    let mut top = 0;
    for range in machine.map.ram() {
        // Not the probe's own memory, nor what it has handed out for good.
        let pool = dma::unused();
        let own = range.base <= pool.start && pool.end <= range.base + range.length;
        let start = if own { pool.start } else { range.base }.next_multiple_of(4096);
        let end = if own { pool.end } else { range.base + range.length } & !4095;
        if range.base < MIB || start >= end {
            continue;
        }
        for page in (start..end).step_by(step as usize).chain([end - 4096]) {
            ensure!(memory::map(page, 4096), "the page at {page:#x} is higher than the probe maps");
            keeps(page)?;
            pages += 1;
            high += u32::from(page >= 4096 * MIB);
            top = page + 4096;
        }
    }
    ensure!(pages > 0, "no RAM behind the probe");
    let ranges = machine.map.ram().count();
    Ok(text!("{megabytes} MiB in {ranges} ranges, {pages} pages tried, {high} above 4 GiB, the last below {top:#x}"))
}

/// Writes a pattern that depends on the address, reads it back, and puts the old content back.
fn keeps(page: u64) -> Outcome<()> {
    for word in (page..page + 4096).step_by(8) {
        let cell = word as *mut u64;
        let pattern = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // SAFETY: RAM behind the probe's own memory, mapped by the caller.
        let kept = unsafe {
            let old = ptr::read_volatile(cell);
            ptr::write_volatile(cell, pattern);
            let kept = ptr::read_volatile(cell);
            ptr::write_volatile(cell, old);
            kept
        };
        ensure!(kept == pattern, "memory at {word:#x} reads {kept:#x} after {pattern:#x} was written");
    }
    Ok(())
}

/// Starts every other processor, lets all work under one lock, and exchanges interrupts.
pub fn smp(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || machine.cpus < 2 {
        return Err(Failure::Absent);
    }
    let mut ids = [0; smp::MAX_AP];
    let mut count = 0;
    let own = lapic::id();
    let madt = Tables::find(machine.rsdp).and_then(|tables| tables.madt());
    let listed = madt.as_ref().map_or(0, |madt| madt.cpus);
    ensure!(madt.is_none() || listed == machine.cpus, "fw_cfg says {} CPUs, the MADT {listed}", machine.cpus);
    for cpu in 0..machine.cpus {
        let id = madt.as_ref().map_or(cpu as u8, |madt| madt.apic_id(cpu));
        if id != own && count < ids.len() {
            ids[count] = id;
            count += 1;
        }
    }
    smp::start(&ids[..count])?;
    let sum = smp::work_together()?;
    let expected = (count as u64 + 1) * smp::INCREMENTS;
    ensure!(sum == expected, "{} processors counted to {sum} instead of {expected}", count + 1);
    let interrupts = smp::ping()?;
    Ok(text!("{} CPUs counted to {sum}, {interrupts} interrupts between them", count + 1))
}

/// All functions on the bus, one line each; ECAM shows the same as the ports.
pub fn pci(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || machine.pci.functions().is_empty() {
        return Err(Failure::Absent);
    }
    for function in machine.pci.functions() {
        let mut bars = Text::new();
        for (number, bar) in bars_of(function) {
            use core::fmt::Write as _;
            let space = if bar.io { "io" } else { "mem" };
            // Text never fails.
            let _ = write!(bars, " bar{number}={space}:{:#x}+{:#x}", bar.address, bar.length);
        }
        crate::println!(
            "pci {function} {:04x}:{:04x} class {:06x}{bars}",
            function.vendor,
            function.device,
            function.class
        );
    }
    let ecam = ecam(machine)?;
    Ok(text!("{} functions, {ecam}", machine.pci.functions().len()))
}

fn bars_of(function: &crate::drivers::pci::Function) -> impl Iterator<Item = (u8, crate::drivers::pci::Bar)> {
    let mut next = 0;
    let normal = function.read8(crate::drivers::pci::register::HEADER_TYPE) & 0x7f == 0;
    core::iter::from_fn(move || {
        while normal && next < 6 {
            let number = next;
            let bar = function.bar(number);
            next += if bar.is_some_and(|bar| bar.wide) { 2 } else { 1 };
            if let Some(bar) = bar {
                return Some((number, bar));
            }
        }
        None
    })
}

/// Compares the header of every function through PCIEXBAR of a q35 host bridge.
fn ecam(machine: &Machine) -> Outcome<Text> {
    const Q35_HOST_BRIDGE: (u16, u16) = (0x8086, 0x29c0);
    const PCIEXBAR: u8 = 0x60;
    const DEFAULT: u64 = 0xb000_0000;
    let bridge = machine.pci.functions().iter().find(|f| (f.vendor, f.device) == Q35_HOST_BRIDGE);
    let Some(bridge) = bridge else { return Ok(text!("no host bridge with ECAM")) };
    let mut base = u64::from(bridge.read32(PCIEXBAR)) | u64::from(bridge.read32(PCIEXBAR + 4)) << 32;
    if base & 1 == 0 {
        base = DEFAULT | 1;
        bridge.write32(PCIEXBAR + 4, 0);
        bridge.write32(PCIEXBAR, base as u32);
    }
    let base = base & !0x3ff_ffff;
    for function in machine.pci.functions() {
        let offset = u64::from(function.slot) << 15 | u64::from(function.function) << 12;
        let Some(window) = dma::Mmio::at(base + offset, 4096) else { fail!("ECAM at {base:#x} can't be mapped") };
        for register in (0..0x40).step_by(4).filter(|&register| register != 4) {
            let (ports, memory) = (function.read32(register), window.read32(u64::from(register)));
            ensure!(ports == memory, "{function} register {register:#x}: ports read {ports:#x}, ECAM {memory:#x}");
        }
    }
    Ok(text!("ECAM at {base:#x} agrees"))
}
