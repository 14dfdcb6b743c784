//! A virtual machine as the library keeps it, and `machine.toml`, the file that says what it is.
//!
//! The file's types are apart from [`VmConfig`]: what is kept changes only with its schema number.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmm_core::config::{Boot, CdromConfig, DiskConfig, DisplayConfig, NetConfig, Topology, Uuid, VmConfig};

use super::lock::{self, Holder, VmLock};
use super::time::Timestamp;
use super::timeline::Timeline;
use super::{LibraryError, files, name};

/// The file in a machine's folder that says what it is.
pub const FILE: &str = "machine.toml";
/// The format this version writes, and the newest it reads.
pub const SCHEMA: u32 = 1;
/// The most that is read of a machine's file.
const MAX_FILE: u64 = 1 << 20;

/// A virtual machine in the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// 32 hexadecimal digits; never changes.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The machine, its paths as the file has them: relative ones start at the folder.
    pub config: VmConfig,
    /// The snapshot that its disks stand on now: where a person is in the tree.
    pub present: Option<String>,
    /// The snapshot, with RAM, that its next start goes on from.
    pub resume: Option<String>,
    /// How its timeline is kept, if it has one.
    pub timeline: Option<Timeline>,
    /// The snapshot that it was set back to, as long as not all of that is done: what it was suspended in is given up already.
    pub restoring: Option<String>,
    pub(super) folder: PathBuf,
}

/// `machine.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineFile {
    schema: u32,
    id: String,
    name: String,
    created: Timestamp,
    cpus: u32,
    memory_mib: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tpm: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resume: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline>,
    restoring: Option<String>,
    #[serde(default)]
    boot: Boot,
    #[serde(default)]
    display: DisplayConfig,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cdroms: Vec<CdromConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nets: Vec<NetConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topology: Option<Topology>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hyperv: bool,
}

impl Machine {
    /// The folder that is this machine.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of its logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The folder of its TPM's state.
    pub fn tpm(&self) -> PathBuf {
        self.folder.join("tpm")
    }

    /// A path of [`Machine::config`] as the host knows it.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// The machine as the monitor takes it: every path absolute.
    pub fn resolved(&self) -> VmConfig {
        let mut config = self.config.clone();
        for path in paths_mut(&mut config) {
            *path = self.folder.join(&path);
        }
        config.uuid = Uuid::try_from(self.id.clone()).ok();
        config
    }

    /// The disks that lie in the machine's folder: what goes when it goes, with the bytes each takes on the host.
    pub fn own_disks(&self) -> Vec<(PathBuf, u64)> {
        use std::os::unix::fs::MetadataExt;
        let resolved = self.config.disks.iter().map(|disk| self.resolve(&disk.path));
        let own = resolved.filter(|path| path.starts_with(&self.folder));
        own.map(|path| {
            let used = std::fs::metadata(&path).map_or(0, |m| m.blocks() * 512);
            (path, used)
        })
        .collect()
    }

    /// The process that runs it now, if one does.
    ///
    /// # Errors
    /// Its lock cannot be read.
    pub fn holder(&self) -> Result<Option<Holder>, LibraryError> {
        lock::holder(&self.folder).map_err(LibraryError::io("read the lock", &self.folder.join(lock::FILE)))
    }

    /// The process that runs it now, and not only does something with its files.
    ///
    /// # Errors
    /// Its lock cannot be read.
    pub fn runner(&self) -> Result<Option<Holder>, LibraryError> {
        Ok(self.holder()?.filter(|holder| holder.runs))
    }

    /// Ends the process that runs the machine, at once: for one that does not answer any more. What its guest has not
    /// written is lost.
    ///
    /// # Errors
    /// Its lock cannot be read, the process is not this person's to end, or does something else with the machine.
    pub fn end_holder(&self) -> Result<(), LibraryError> {
        use rustix::process::{Pid, Signal, kill_process};
        // Who holds it at this moment: a number from earlier may be somebody else's by now.
        let Some(holder) = self.holder()? else { return Ok(()) };
        if !holder.runs {
            return Err(self.held_by(&holder));
        }
        let failed = || LibraryError::io("end the process that runs", &self.folder);
        let pid = i32::try_from(holder.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))?;
        kill_process(pid, Signal::KILL).map_err(|error| failed()(error.into()))
    }

    /// Takes the machine for this process, to do something with its files, and reads it again: whoever had it until now may
    /// have given it other images.
    ///
    /// # Errors
    /// [`LibraryError::Running`] or [`LibraryError::Busy`] when another process has it, or its file can't be understood.
    pub fn lock(&mut self) -> Result<VmLock, LibraryError> {
        self.take_lock(false)
    }

    /// The same to run it.
    ///
    /// # Errors
    /// As there.
    pub fn lock_to_run(&mut self) -> Result<VmLock, LibraryError> {
        self.take_lock(true)
    }

    fn take_lock(&mut self, runs: bool) -> Result<VmLock, LibraryError> {
        let taken = VmLock::take(&self.folder, runs);
        match taken.map_err(LibraryError::io("lock the machine with", &self.folder.join(lock::FILE)))? {
            Ok(lock) => {
                *self = Machine::read(&self.folder)?;
                Ok(lock)
            }
            Err(holder) => Err(self.held_by(&holder)),
        }
    }

    /// Why nothing can be done with it that needs it to be off.
    pub fn held_by(&self, holder: &Holder) -> LibraryError {
        let (name, pid) = (self.name.clone(), holder.pid);
        if holder.runs { LibraryError::Running { name, pid } } else { LibraryError::Busy { name, pid } }
    }

    /// Reads the machine in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Machine, LibraryError> {
        let path = folder.join(FILE);
        Machine::from_text(folder, &path, &read_bounded(&path)?)
    }

    /// The machine in `folder` that a text says, which is `path`'s.
    pub(super) fn from_text(folder: &Path, path: &Path, text: &str) -> Result<Machine, LibraryError> {
        let file = parse(path, text)?;
        let MachineFile {
            schema: _,
            id,
            name,
            created,
            cpus,
            memory_mib,
            tpm,
            boot,
            display,
            disks,
            cdroms,
            nets,
            topology,
            hyperv,
            present,
            resume,
            timeline,
            restoring,
        } = file;
        // What the machine is to its guest is its id.
        let uuid = None;
        let config = VmConfig { cpus, memory_mib, boot, disks, cdroms, nets, display, tpm, topology, hyperv, uuid };
        let broken = |field: &str, problem: String| LibraryError::Broken {
            file: path.into(),
            line: line_of(text, field),
            field: Some(field.into()),
            problem,
        };
        if id.len() != 32 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(broken("id", format!("{id:?} is no id; an id has 32 lower-case hexadecimal digits")));
        }
        if let Err(error) = name::check(&name) {
            return Err(broken("name", error.to_string()));
        }
        if let Err(mut errors) = config.validate() {
            let first = errors.swap_remove(0);
            return Err(broken(&first.field, first.problem));
        }
        if let Some(problem) = timeline.and_then(|timeline| timeline.validate().err()) {
            return Err(broken("timeline", problem));
        }
        Ok(Machine { id, name, created, config, present, resume, timeline, restoring, folder: folder.into() })
    }

    /// The machine's file, as [`Machine::write`] writes it.
    pub(crate) fn text(&self) -> Result<String, LibraryError> {
        let Machine { id, name, created, config, present, resume, timeline, restoring, folder: _ } = self.clone();
        let VmConfig { cpus, memory_mib, boot, disks, cdroms, nets, display, tpm, topology, hyperv, uuid: _ } = config;
        let file = MachineFile {
            schema: SCHEMA,
            id,
            name,
            created,
            cpus,
            memory_mib,
            tpm,
            boot,
            display,
            disks,
            cdroms,
            nets,
            topology,
            hyperv,
            present,
            resume,
            timeline,
            restoring,
        };
        let write = LibraryError::io("write", &self.folder.join(FILE));
        toml::to_string(&file).map_err(|error| write(std::io::Error::other(error)))
    }

    /// Writes the machine's file, whole.
    pub(crate) fn write(&self) -> Result<(), LibraryError> {
        let path = self.folder.join(FILE);
        files::write_atomic(&path, self.text()?.as_bytes()).map_err(LibraryError::io("write", &path))
    }
}

/// Every path of a configuration.
pub(super) fn paths_mut(config: &mut VmConfig) -> impl Iterator<Item = &mut PathBuf> {
    let (first, second) = match &mut config.boot {
        Boot::Bios => (None, None),
        Boot::Uefi { variables, secure_boot: _, menu: _ } => (variables.as_mut(), None),
        Boot::Kernel { kernel, initrd, cmdline: _ } => (Some(kernel), initrd.as_mut()),
    };
    let disks = config.disks.iter_mut().map(|disk| &mut disk.path);
    let cdroms = config.cdroms.iter_mut().filter_map(|drive| drive.path.as_mut());
    first.into_iter().chain(second).chain(disks).chain(cdroms)
}

fn read_bounded(path: &Path) -> Result<String, LibraryError> {
    use std::io::Read;
    let broken = |problem: String| LibraryError::Broken { file: path.into(), line: None, field: None, problem };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(broken("the file is missing; put it back or delete the folder".into()));
        }
        Err(error) => return Err(LibraryError::io("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(LibraryError::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(broken("it is larger than any machine's file".into()));
    }
    String::from_utf8(bytes).map_err(|_| broken("it is no text (UTF-8)".into()))
}

fn parse(path: &Path, text: &str) -> Result<MachineFile, LibraryError> {
    let broken = |error: toml::de::Error| {
        let line = error.span().map(|span| line_at(text, span.start));
        // For a missing field the span is that of the table, whose line says nothing.
        let message = error.message().trim().replace('\n', "; ");
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let field = match (missing, line) {
            (Some(field), _) => Some(field.to_string()),
            (None, Some(line)) => field_at(text, line),
            (None, None) => None,
        };
        LibraryError::Broken { file: path.into(), line: line.filter(|_| missing.is_none()), field, problem: message }
    };
    // The schema first: a newer file's other fields say nothing to this version.
    let table: toml::Table = toml::from_str(text).map_err(broken)?;
    let schema = |problem: String| LibraryError::Broken {
        file: path.into(),
        line: line_of(text, "schema"),
        field: Some("schema".into()),
        problem,
    };
    match table.get("schema").map(toml::Value::as_integer) {
        None => Err(schema("it is missing; this file was not written by Orangery".into())),
        Some(Some(number)) if number == i64::from(SCHEMA) => toml::from_str(text).map_err(broken),
        Some(Some(number)) if number > i64::from(SCHEMA) => Err(schema(format!(
            "it is {number}: a newer Orangery wrote this file, and this one reads up to {SCHEMA}; use the newer one"
        ))),
        Some(_) => Err(schema(format!("it is no schema this Orangery knows; it writes {SCHEMA}"))),
    }
}

/// The line, from 1, of a byte offset.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|&&b| b == b'\n').count()
}

/// The lines of a file with the path of the field each one sets (`disks[1].path`); a table's own line has the table's.
fn fields(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut table = String::new();
    let mut counts: Vec<(String, usize)> = Vec::new();
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        let number = index + 1;
        if let Some(header) = line.strip_prefix("[[").and_then(|rest| rest.split("]]").next()) {
            let header = header.trim();
            let seen = match counts.iter_mut().find(|(name, _)| name == header) {
                Some((_, seen)) => {
                    *seen += 1;
                    *seen
                }
                None => {
                    counts.push((header.into(), 0));
                    0
                }
            };
            table = format!("{header}[{seen}]");
            return Some((number, table.clone()));
        }
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = header.trim().into();
            return Some((number, table.clone()));
        }
        let key =
            line.split_once('=').map(|(key, _)| key.trim()).filter(|key| !key.is_empty() && !key.starts_with('#'))?;
        Some((number, if table.is_empty() { key.into() } else { format!("{table}.{key}") }))
    })
}

fn field_at(text: &str, line: usize) -> Option<String> {
    fields(text).find(|(number, _)| *number == line).map(|(_, field)| field)
}

/// The line that sets a field; where none does, the line of the table it belongs to.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let mut field = field;
    loop {
        if let Some((line, _)) = fields(text).find(|(_, name)| name == field) {
            return Some(line);
        }
        field = field.rsplit_once('.')?.0;
    }
}
