//! Builds the probe guest (tests/probe) with the compiler that builds the workspace.
//!
//! The probe is a bare-metal program, so it is compiled by `rustc` directly: cargo would compile it for the host, with
//! the host's runtime. Its source is one crate without dependencies.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The probe is always a 64-bit x86 program, whatever builds it; every Rust toolchain on such a host has this target.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Bytes of a disk sector.
const SECTOR: usize = 512;
/// Sectors of a cylinder by the translation that BIOSes use (63 sectors, 16 heads at least). They read the boot sector by
/// its CHS address, so a disk of less than one cylinder has none.
const CYLINDER: usize = 63 * 16;
/// Where the loader expects its numbers: sectors to read, dwords of the program, entry point (tests/probe/loader).
const LOADER_NUMBERS: usize = 4;
/// The most the loader can read below the BIOS's memory.
const PROGRAM_LIMIT: usize = 0x8_0000 - 0x1_0200;
/// What a disk image does unless a user writes other words into its second sector.
const COMMAND_LINE: &[u8] = b"test=all\0";

fn main() {
    let probe = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../tests/probe");
    let out = PathBuf::from(variable("OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", probe.display());
    let (program, loader) = (out.join("probe.elf"), out.join("loader.elf"));
    link(&probe.join("src/main.rs"), &probe.join("link.ld"), &program);
    link(&probe.join("loader/main.rs"), &probe.join("loader/link.ld"), &loader);
    let disk = disk_image(&read(&program), &read(&loader));
    let path = out.join("probe.img");
    if let Err(error) = fs::write(&path, disk) {
        panic!("could not write {}: {error}", path.display());
    }
}

/// Boot sector, command line, program: a disk that a BIOS starts.
fn disk_image(program: &[u8], loader: &[u8]) -> Vec<u8> {
    let entry = pvh_entry(program);
    let mut program = segment(program).to_vec();
    assert!(program.len() <= PROGRAM_LIMIT, "the probe has {} bytes, too many for its loader", program.len());
    program.resize(program.len().next_multiple_of(SECTOR), 0);
    let mut disk = segment(loader).to_vec();
    assert_eq!(disk.len(), SECTOR, "the loader must be one sector");
    let numbers = [(SECTOR + program.len()) / SECTOR, program.len() / 4, entry as usize];
    for (place, number) in disk[LOADER_NUMBERS..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&(number as u32).to_le_bytes());
    }
    disk.extend_from_slice(COMMAND_LINE);
    disk.resize(2 * SECTOR, 0);
    disk.append(&mut program);
    disk.resize(disk.len().next_multiple_of(CYLINDER * SECTOR), 0);
    disk
}

/// A little-endian number in a file.
fn number(file: &[u8], offset: u64, bytes: usize) -> u64 {
    let field = &file[offset as usize..][..bytes];
    field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The bytes of an ELF file's program header of a kind: its first, as our link scripts write one of each.
fn header(elf: &[u8], kind: u64) -> &[u8] {
    let (table, size, count) = (number(elf, 32, 8), number(elf, 54, 2), number(elf, 56, 2));
    match (0..count).map(|index| table + index * size).find(|&at| number(elf, at, 4) == kind) {
        Some(at) => &elf[number(elf, at + 8, 8) as usize..][..number(elf, at + 32, 8) as usize],
        None => panic!("the linker wrote no program header of type {kind}"),
    }
}

/// What an ELF file loads.
fn segment(elf: &[u8]) -> &[u8] {
    const PT_LOAD: u64 = 1;
    header(elf, PT_LOAD)
}

/// The entry point in the note XEN_ELFNOTE_PHYS32_ENTRY: after sizes, type and the name "Xen".
fn pvh_entry(elf: &[u8]) -> u32 {
    const PT_NOTE: u64 = 4;
    number(header(elf, PT_NOTE), 16, 4) as u32
}

fn read(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => panic!("could not read {}: {error}", path.display()),
    }
}

/// Compiles a freestanding crate and lays it out by a link script.
fn link(source: &Path, script: &Path, output: &Path) {
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--crate-type", "bin", "--edition", "2024", "--target", TARGET])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "codegen-units=1", "-C", "strip=symbols"])
        .args(["-C", "relocation-model=static", "-C", "link-args=-nostdlib -static -no-pie -Wl,--build-id=none"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(output)
        .arg(source);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = match rustc.status() {
        Ok(status) => status,
        Err(error) => panic!("could not run the compiler for {}: {error}", source.display()),
    };
    assert!(status.success(), "could not build {}: {status}", source.display());
}

fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(error) => panic!("cargo did not set {name}: {error}"),
    }
}
