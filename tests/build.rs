//! Builds the boot sector of the video tests (bios/) with the compiler that builds the workspace, as assets/build.rs builds
//! the probe guest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let folder = Path::new(&variable("CARGO_MANIFEST_DIR")).join("bios");
    let output = PathBuf::from(variable("OUT_DIR")).join("script.elf");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--crate-type", "bin", "--edition", "2024", "--target", "x86_64-unknown-linux-gnu"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "codegen-units=1", "-C", "strip=symbols"])
        .args(["-C", "relocation-model=static", "-C", "link-args=-nostdlib -static -no-pie -Wl,--build-id=none"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", folder.join("link.ld").display()))
        .arg("-o")
        .arg(&output)
        .arg(folder.join("main.rs"));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    match rustc.status() {
        Ok(status) => assert!(status.success(), "could not build the boot sector: {status}"),
        Err(error) => panic!("could not run the compiler: {error}"),
    }
}

fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(error) => panic!("cargo did not set {name}: {error}"),
    }
}
