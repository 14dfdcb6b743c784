//! What verbs print: the JSON shapes that scripts rely on, and the same for people.
//!
//! Fields may be added to a shape; none changes its meaning or goes.

use std::path::PathBuf;

use serde::Serialize;
use vmm_core::base::explain;
use vmm_core::config::{DiskBus, VmConfig};

use crate::control::{Power, State};
use crate::library::preflight::{Cause, Outcome};
use crate::library::snapshots::Snapshot;
use crate::library::{Check, Entry, Firmware, Machine, Medium, MediumKind, Timestamp, Trashed, detect::Table, size};

/// One machine of `list`.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Its name; its folder's where its file is broken.
    pub name: String,
    /// Its id; absent where its file is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `stopped`, `starting`, `running`, `paused`, `suspended`, or `broken`.
    pub state: &'static str,
    /// The process that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Its memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Its folder.
    pub folder: PathBuf,
    /// Why its file is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A snapshot, as `orangery snapshot list --json` has it.
#[derive(Debug, Serialize)]
pub struct ShownSnapshot {
    /// Its name for programs.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What was written of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// When it was taken.
    pub created: Timestamp,
    /// What it came after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// It has RAM: the machine ran.
    pub running: bool,
    /// What its own files take on the host, bytes.
    pub size: u64,
    /// The present stands on it.
    pub present: bool,
}

impl From<Snapshot> for ShownSnapshot {
    fn from(snapshot: Snapshot) -> ShownSnapshot {
        let Snapshot { id, name, note, created, parent, running, size, is_present } = snapshot;
        ShownSnapshot { id, name, note, created, parent, running, size, present: is_present }
    }
}

impl Listed {
    /// A machine as it is; `power` is absent when that can't be told.
    pub fn new(entry: &Entry, power: Option<(Power, u32)>) -> Listed {
        let machine = entry.machine.as_ref().ok();
        let state = match (machine, power) {
            (None, _) => "broken",
            (Some(_), None) => Power::Stopped.word(),
            (Some(_), Some((power, _))) => power.word(),
        };
        Listed {
            name: entry.name(),
            id: machine.map(|machine| machine.id.clone()),
            state,
            pid: power.map(|(_, pid)| pid).filter(|&pid| pid != 0),
            cpus: machine.map(|machine| machine.config.cpus),
            memory_mib: machine.map(|machine| machine.config.memory_mib),
            folder: entry.folder.clone(),
            error: entry.machine.as_ref().err().map(|error| explain(error)),
        }
    }
}

/// `show`, and what `create`, `rename` and `restore` answer.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
    /// When it was made.
    pub created: Timestamp,
    /// Its folder.
    pub folder: PathBuf,
    /// `stopped`, `starting`, `running` or `paused`.
    pub state: &'static str,
    /// The machine, as `machine.toml` has it, its paths absolute.
    pub config: VmConfig,
    /// The disks in its folder.
    pub own_disks: Vec<OwnDisk>,
    /// More, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<&'a State>,
}

/// A disk in a machine's folder.
#[derive(Debug, Serialize)]
pub struct OwnDisk {
    /// Its file.
    pub path: PathBuf,
    /// What it takes on the host, bytes.
    pub used: u64,
}

impl<'a> Shown<'a> {
    /// A machine as it is; `running` is absent when it does not run or does not answer.
    pub fn new(machine: &'a Machine, power: Power, running: Option<&'a State>) -> Shown<'a> {
        let own_disks = machine.own_disks().into_iter().map(|(path, used)| OwnDisk { path, used }).collect();
        Shown {
            name: &machine.name,
            id: &machine.id,
            created: machine.created,
            folder: machine.folder().into(),
            state: power.word(),
            config: machine.resolved(),
            own_disks,
            running,
        }
    }
}

/// One machine of `trash`, and what `delete` answers.
#[derive(Debug, Serialize)]
pub struct Deleted<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
    /// When it was deleted.
    pub deleted: Timestamp,
    /// Where it lies now.
    pub folder: &'a std::path::Path,
}

impl<'a> From<&'a Trashed> for Deleted<'a> {
    fn from(trashed: &'a Trashed) -> Deleted<'a> {
        let Trashed { id, name, deleted, folder } = trashed;
        Deleted { name, id, deleted: *deleted, folder }
    }
}

/// One check of `check`.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// What was looked at.
    pub what: &'static str,
    /// `good`, `warning` or `failed`.
    pub outcome: &'static str,
    /// What was found, or what is wrong.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// A command that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl From<Check> for Checked {
    fn from(check: Check) -> Checked {
        let (outcome, text, remedy, command) = match check.outcome {
            Outcome::Good(text) => ("good", text, None, None),
            Outcome::Warning(Cause { cause, remedy, command }) => ("warning", cause, Some(remedy), command),
            Outcome::Failed(Cause { cause, remedy, command }) => ("failed", cause, Some(remedy), command),
        };
        Checked { what: check.what, outcome, text, remedy, command }
    }
}

/// `detect`.
#[derive(Debug, Serialize)]
pub struct Detected<'a> {
    /// The file.
    pub path: &'a std::path::Path,
    /// Its size, bytes.
    pub size: u64,
    /// `iso`, `disk`, `linux` or `elf`.
    pub kind: &'static str,
    /// An ISO's volume name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<&'a str>,
    /// An ISO or disk that a BIOS can boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bios: Option<bool>,
    /// An ISO or disk that UEFI can boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uefi: Option<bool>,
    /// A disk's partition table: `mbr`, `gpt` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<&'static str>,
    /// A kernel's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<&'a str>,
    /// The name a machine made from it gets.
    pub suggested_name: String,
    /// What is worth knowing before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}

impl<'a> From<&'a Medium> for Detected<'a> {
    fn from(medium: &'a Medium) -> Detected<'a> {
        let mut detected = Detected {
            path: &medium.path,
            size: medium.size,
            kind: "elf",
            label: None,
            bios: None,
            uefi: None,
            table: None,
            version: None,
            suggested_name: medium.suggested_name(),
            warning: medium.warning(),
        };
        match &medium.kind {
            MediumKind::Iso { label, bios, uefi } => {
                detected.kind = "iso";
                detected.label = label.as_deref();
                (detected.bios, detected.uefi) = (Some(*bios), Some(*uefi));
            }
            MediumKind::Disk { table, bios, uefi } => {
                detected.kind = "disk";
                (detected.bios, detected.uefi) = (Some(*bios), Some(*uefi));
                detected.table = Some(match table {
                    Table::Mbr => "mbr",
                    Table::Gpt => "gpt",
                    Table::None => "none",
                });
            }
            MediumKind::Linux { version } => {
                detected.kind = "linux";
                detected.version = version.as_deref();
            }
            MediumKind::Elf => {}
        }
        detected
    }
}

/// Rows in columns as wide as their widest cell; the last as it is.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A machine in words, one property a line.
pub fn words(shown: &Shown<'_>) -> String {
    use vmm_core::config::Boot;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |key: &str, value: String| rows.push(vec![key.into(), value]);
    row("Name", shown.name.into());
    row("State", shown.state.into());
    row("CPUs", shown.config.cpus.to_string());
    row("Memory", size::human(shown.config.memory_mib << 20));
    if let Some(firmware) = Firmware::of(&shown.config.boot) {
        row("Firmware", firmware.label().into());
    }
    if let Boot::Kernel { kernel, initrd, cmdline } = &shown.config.boot {
        row("Kernel", kernel.display().to_string());
        if let Some(initrd) = initrd {
            row("Initrd", initrd.display().to_string());
        }
        if !cmdline.is_empty() {
            row("Cmdline", cmdline.clone());
        }
    }
    for (i, disk) in shown.config.disks.iter().enumerate() {
        let size = std::fs::metadata(&disk.path).map(|m| size::human(m.len()));
        let own = shown.own_disks.iter().find(|own| own.path == disk.path);
        let used = own.map(|own| format!(", {} used", size::human(own.used))).unwrap_or_default();
        let readonly = if disk.readonly { ", read-only" } else { "" };
        let bus = if disk.bus == DiskBus::default() { String::new() } else { format!(", {}", disk.bus.title()) };
        let size = size.unwrap_or_else(|_| "missing".into());
        row(&format!("Disk {i}"), format!("{} ({size}{used}{readonly}{bus})", disk.path.display()));
    }
    for (i, drive) in shown.config.cdroms.iter().enumerate() {
        let medium = drive.path.as_ref().map_or("empty".into(), |path| path.display().to_string());
        row(&format!("CD-ROM {i}"), medium);
    }
    for (i, net) in shown.config.nets.iter().enumerate() {
        row(
            &format!("Network {i}"),
            net.tap.as_ref().map_or_else(|| "not plugged in".into(), |tap| format!("tap {tap}")),
        );
    }
    if shown.config.tpm {
        row("TPM", "2.0".into());
    }
    row("Created", shown.created.to_string());
    row("Id", shown.id.into());
    row("Folder", shown.folder.display().to_string());
    if let Some(state) = shown.running {
        row("Process", state.pid.to_string());
        let screen = state.screen.map_or("off".into(), |(width, height)| format!("{width} × {height}"));
        row("Screen", screen);
        if let Some(problem) = &state.problem {
            row("Problem", problem.clone());
        }
    }
    table(&rows)
}
