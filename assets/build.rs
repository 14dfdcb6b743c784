//! Builds the probe guest (tests/probe) with the compiler that builds the workspace.
//!
//! The probe is a bare-metal program, so it is compiled by `rustc` directly: cargo would compile it for the host, with
//! the host's runtime. Its source is one crate without dependencies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The probe is always a 64-bit x86 program, whatever builds it; every Rust toolchain on such a host has this target.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let probe = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../tests/probe");
    let out = PathBuf::from(variable("OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", probe.display());
    link(&probe.join("src/main.rs"), &probe.join("link.ld"), &out.join("probe.elf"));
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
