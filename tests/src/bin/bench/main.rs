//! The benchmarks: what Orangery costs beside QEMU and beside what the computer can do, measured in one run.
//!
//! A figure is a ratio: both sides are run in turn, several times, and their medians are compared; absolute values are
//! context, for they change with the computer and with what else it does. Nothing here passes or fails by a time.
//! Results go to `artifacts/bench.md` and `artifacts/bench.json`. `bench NAME…` measures only those of `start`, `idle`,
//! `firmware`, `disk`, `qcow2`, `checkpoint`, `timeline`, `display` and `source`.

mod checkpoint;
mod disk;
mod display;
mod figures;
mod firmware;
mod first_run;
mod guest;
mod idle;
mod qcow2;
mod source;
mod start;
mod timeline;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use orangery_tests::kvm::Kvm;

use figures::Report;

/// What every measurement needs.
struct Bench {
    /// The program that is measured: the build beside this one, or what `ORANGERY_BIN` names.
    orangery: PathBuf,
    /// The probe guest's ELF file.
    probe: PathBuf,
    /// For disks, on the file system of the project.
    scratch: tempfile::TempDir,
}

/// A measurement: it adds figures to the report.
type Measurement = fn(&Bench, &mut Report) -> Result<()>;

const MEASUREMENTS: &[(&str, Measurement)] = &[
    ("source", source::measure),
    ("start", start::measure),
    ("firmware", firmware::measure),
    ("idle", idle::measure),
    ("disk", disk::measure),
    ("qcow2", qcow2::measure),
    ("checkpoint", checkpoint::measure),
    ("timeline", timeline::measure),
    ("display", display::measure),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some((firmware::SAMPLE, arguments)) = wanted.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        return firmware::sample(arguments);
    }
    for name in &wanted {
        let known = MEASUREMENTS.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        ensure!(known.contains(&name.as_str()), "there is no measurement '{name}': choose of {}", known.join(", "));
    }
    ensure!(Kvm::detect() != Kvm::None, "there is no /dev/kvm that may be opened, and every figure needs it");
    let artifacts = orangery_tests::artifacts()?;
    let orangery = match std::env::var_os("ORANGERY_BIN") {
        Some(path) => PathBuf::from(path),
        None => orangery_tests::orangery()?,
    };
    let scratch = tempfile::tempdir_in(&artifacts).context("could not make a folder for disks")?;
    let probe = scratch.path().join("probe.elf");
    fs::write(&probe, orangery_assets::PROBE_ELF).context("could not write the probe guest")?;
    let bench = Bench { orangery, probe, scratch };

    let begun = Instant::now();
    let mut report = Report::new(&bench.orangery)?;
    for (name, measure) in MEASUREMENTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("==> {name}");
            // A peer that is not installed must not cost the other figures.
            if let Err(error) = measure(&bench, &mut report) {
                eprintln!("{name}: {error:#}");
                report.note(format!("`{name}` was not measured: {error:#}"));
            }
        }
    }
    report.note(format!("Measured in {} s.", begun.elapsed().as_secs()));
    let markdown = report.markdown();
    fs::write(artifacts.join("bench.md"), &markdown).context("could not write artifacts/bench.md")?;
    let json = serde_json::to_vec_pretty(&report.json()).context("could not encode the figures")?;
    fs::write(artifacts.join("bench.json"), json).context("could not write artifacts/bench.json")?;
    print!("{markdown}");
    Ok(())
}
