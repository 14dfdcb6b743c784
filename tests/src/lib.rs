//! What the end-to-end tests are built from: guests made of Debian packages, the nested host that runs them on real
//! KVM everywhere, and a virtual desktop to drive the windows in.

pub mod checks;
pub mod crash;
pub mod desktop;
pub mod guest;
pub mod hollow;
pub mod initramfs;
pub mod kvm;
pub mod machine;
pub mod matrix;
pub mod media;
pub mod nested;
pub mod process;
pub mod qemu;
pub mod reader;
pub mod report;
pub mod screen;
pub mod script;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The project's root folder.
pub fn project() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Where tests leave logs and screenshots: `artifacts/` in the project's root, kept by CI.
pub fn artifacts() -> Result<PathBuf> {
    let folder = project().join("artifacts");
    std::fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    Ok(folder)
}

/// Cargo's target folder of the running test or tool.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), |dir| project().join(dir))
}

/// The `orangery` binary of the profile that the running test was built with. It exists when the workspace was built;
/// Cargo does not build another package's binary for a test by itself.
pub fn orangery() -> Result<PathBuf> {
    let me = std::env::current_exe().context("could not find the running test's own path")?;
    let folder = me.parent().map(|dir| if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir });
    let path = folder.unwrap_or(Path::new("/")).join("orangery");
    ensure!(
        path.exists(),
        "{} is missing: build it first with 'cargo build --workspace', or run './dev test'",
        path.display()
    );
    Ok(path)
}
